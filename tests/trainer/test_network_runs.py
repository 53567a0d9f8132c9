"""The real trainer with LoRA-FA, DyLoRA, OFT, LoHa and LoKr on both families, and what is switched on beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Finished, train_here
from safetensors import safe_open
from safetensors.torch import load_file

FEW = "include_patterns=[r'.*mid(dle)?_block.*',r'.*layers\\.[01]\\..*']"
ARGUMENTS = {
    "lora_fa": ["rank_dropout=0.1"],
    "dylora": ["unit=2"],
    "oft": ["enable_all_linear=False"],
    "loha": ["conv_dim=2", "use_tucker=True", "loraplus_lr_ratio=2", FEW],
    "lokr": ["conv_dim=2", "factor=4", "rank_dropout=0.1", "module_dropout=0.1", FEW],
}
WITH: dict[str, dict[str, Any]] = {
    "lora_fa": {"mixed_precision": "bf16", "scale_weight_norms": 1.0},
    "dylora": {"gradient_checkpointing": True, "gradient_accumulation_steps": 2},
    "oft": {"mixed_precision": "bf16", "fp8_base": True, "network_train_unet_only": True},
    "loha": {"mixed_precision": "bf16", "gradient_checkpointing": True, "scale_weight_norms": 1.0},
    "lokr": {"mixed_precision": "bf16", "full_bf16": True},
}
FAMILIES = {"sd1": "train_network", "sdxl": "sdxl_train_network"}
# DyLoRA runs in the test of resuming anyway.
ALWAYS = {"lora_fa": "sdxl", "oft": "sdxl", "loha": "sd1", "lokr": "sdxl"}
PAIRS = [
    pytest.param(kind, family, marks=() if ALWAYS.get(kind) == family else pytest.mark.slow)
    for kind in ARGUMENTS
    for family in FAMILIES
]


def run(kind: str, family: str, models: dict[str, Path], data: Path, out: Path, **more: Any) -> Finished:
    network = {"network_module": f"networks.{kind}", "network_alpha": 2, "network_args": ARGUMENTS[kind]}
    return train_here(models[family], data, out, FAMILIES[family], **{"max_train_steps": 2, **network, **more})


@pytest.fixture(scope="module")
def models(tiny_sd1: Path, tiny_sdxl: Path) -> dict[str, Path]:
    return {"sd1": tiny_sd1, "sdxl": tiny_sdxl}


@pytest.mark.parametrize(("kind", "family"), PAIRS)
def test_a_run(kind: str, family: str, models: dict[str, Path], thumbs: Path, tmp_path: Path) -> None:
    done = run(kind, family, models, thumbs, tmp_path, **WITH[kind])
    assert done.code == 0, done.events[-1]
    assert len(done.losses) == 2 and bool(torch.tensor(done.losses).isfinite().all())
    path = tmp_path / "small.safetensors"
    weights = load_file(path)
    with safe_open(str(path), framework="pt") as handle:
        assert handle.metadata()["ss_network_module"] == f"networks.{kind}"
    # What starts at zero has moved.
    zeros = {"lora_fa": "lora_up.weight", "dylora": "lora_up.weight", "oft": "oft_blocks", "loha": "hada_w2_a"}
    ending = zeros.get(kind, "")
    learned = [value for key, value in weights.items() if key.endswith(ending) and not key.endswith("alpha")]
    assert any(bool(value.any()) for value in learned)
    parts = {key.split("_text_model_")[0].split("_unet_")[0] for key in weights}
    encoders = {"lora_te"} if family == "sd1" else {"lora_te1", "lora_te2"}
    assert parts == ({"oft"} if kind == "oft" else {"lora", *encoders})


@pytest.mark.parametrize("kind", ["dylora", "lokr"])
def test_resumed_equals_uninterrupted(kind: str, models: dict[str, Path], thumbs: Path, tmp_path: Path) -> None:
    """The drawn ranks and the dropouts of the steps to come are part of the state."""
    more = {"network_train_unet_only": True, "gradient_checkpointing": True}
    whole = run(kind, "sd1", models, thumbs, tmp_path / "a", save_every_n_steps=1, save_state=True, **more)
    rest = run(kind, "sd1", models, thumbs, tmp_path / "b", resume=tmp_path / "a" / "small-step00000001-state", **more)
    assert whole.code == rest.code == 0
    assert rest.losses == whole.losses[1:]
    one, two = (load_file(done.out / "small.safetensors") for done in (whole, rest))
    assert [key for key, value in one.items() if not torch.equal(value, two[key])] == []
    assert any(bool(value.any()) for key, value in one.items() if key.endswith(("lora_up.weight", "lokr_w2_b")))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_a_file_goes_on(kind: str, models: dict[str, Path], thumbs: Path, tmp_path: Path) -> None:
    path = tmp_path / "a" / "small.safetensors"
    assert run(kind, "sdxl", models, thumbs, tmp_path / "a").code == 0
    more = {"network_weights": path, "dim_from_weights": True, "network_dim": None, "learning_rate": 1e-12}
    assert run(kind, "sdxl", models, thumbs, tmp_path / "b", **more, max_train_steps=1).code == 0
    old, new = load_file(path), load_file(tmp_path / "b" / "small.safetensors")
    assert old.keys() == new.keys()
    for key, value in old.items():
        torch.testing.assert_close(new[key], value, rtol=1e-5, atol=1e-6, check_dtype=False)
