"""DoRA, rsLoRA and PiSSA in whole runs of the trainer: resumed exactly, and what does not go together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from effects import FEW_BLOCKS, SMALL
from runs import train_here
from safetensors import safe_open
from safetensors.torch import load_file, save_file

EVERYTHING = [
    FEW_BLOCKS,
    "dora_wd=True",
    "rs_lora=True",
    "init_lora_weights=pissa",
    "conv_dim=2",
    "loraplus_lr_ratio=4",
]


def test_all_of_them_resume_exactly_and_the_file_tells(tiny_sd1: Path, thumbs: Path, tmp_path: Path) -> None:
    options = {**SMALL, "network_args": EVERYTHING, "max_train_steps": 3, "train_batch_size": 4, "learning_rate": 1e-3}
    options |= {"network_dropout": 0.1, "save_precision": "fp16"}
    saving = {"save_every_n_steps": 2, "save_state": True}
    whole = train_here(tiny_sd1, thumbs, tmp_path / "whole", **options, **saving)
    assert whole.code == 0, whole.error
    state = tmp_path / "whole" / "small-step00000002-state"
    rest = train_here(tiny_sd1, thumbs, tmp_path / "rest", **options, resume=state)
    assert rest.losses == whole.losses[2:]
    one, two = (load_file(tmp_path / name / "small.safetensors") for name in ("whole", "rest"))
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    with safe_open(str(tmp_path / "rest" / "small.safetensors"), framework="pt") as handle:
        notes = handle.metadata()
    assert notes["ss_network_module"] == "networks.lora" and '"dora_wd": "True"' in notes["ss_network_args"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale_weight_norms": 1.0}, "cannot limit its norms"),
        ({"dim_from_weights": True, "network_weights": "x.safetensors"}, "PiSSA cannot take its ranks from a file"),
    ],
)
def test_what_does_not_go_together_with_pissa(
    tiny_sd1: Path, thumbs: Path, tmp_path: Path, options: dict[str, object], words: str
) -> None:
    if "network_weights" in options:
        file = tmp_path / "x.safetensors"
        save_file({"lora_unet_x.lora_down.weight": torch.zeros(4, 8)}, file)
        options = {**options, "network_weights": file, "network_dim": None}
    given = {**SMALL, **options, "network_args": [FEW_BLOCKS, "init_lora_weights=pissa"]}
    run = train_here(tiny_sd1, thumbs, tmp_path / "out", **given)
    assert run.code == 2
    assert words in run.error["message"]
