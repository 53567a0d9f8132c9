"""LyCORIS in the trainer: samples, validation, recomputed activations and 16 bits change nothing; a state goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import train_here
from safetensors.torch import load_file

pytest.importorskip("lycoris.kohya")


def options(folder: Path, *arguments: str, **more: Any) -> dict[str, Any]:
    """A run with a network on a few layers of the U-Net and on the text encoder's MLPs."""
    preset = folder / "few.toml"
    preset.write_text(
        'enable_conv = true\nunet_target_module = ["Downsample2D"]\nunet_target_name = ["mid_block.attentions.*to_q"]\n'
        'text_encoder_target_module = ["CLIPMLP"]\ntext_encoder_target_name = []\n',
        encoding="utf-8",
    )
    return {
        "network_module": "lycoris.kohya",
        "network_alpha": 2,
        "network_args": [f"preset={preset}", *arguments],
        "learning_rate": 1e-2,
        **more,
    }


def same(first: Path, second: Path) -> None:
    one, two = load_file(str(first)), load_file(str(second))
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_looking_at_it_and_resuming_leave_a_training_as_it_is(shallow_sd1: Path, thumbs: Path, tmp_path: Path) -> None:
    """DyLoRA draws a block of ranks for each batch, which recomputed activations must see again."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat --w 64 --h 64 --s 1\n", encoding="utf-8")
    plain = options(tmp_path, "algo=dylora", "block_size=1", "train_norm=True", "rank_dropout=0", "module_dropout=0.2")
    looked_at = {
        "sample_prompts": prompts,
        "sample_every_n_steps": 2,
        "validation_split": 0.3,
        "validate_every_n_steps": 2,
        "max_validation_steps": 1,
        "save_every_n_steps": 2,
        "save_state": True,
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
        "max_train_steps": 3,
    }
    one = train_here(shallow_sd1, thumbs, tmp_path / "one", **plain, **looked_at)
    assert one.code == 0 and len(one.of("sample")) == 1 and one.of("validate")
    unseen = {key: looked_at[key] for key in ("validation_split", "mixed_precision", "max_train_steps")}
    bare = train_here(shallow_sd1, thumbs, tmp_path / "bare", **plain, **unseen)
    assert bare.losses == pytest.approx(one.losses, rel=1e-6)
    for name, value in load_file(str(tmp_path / "bare" / "small.safetensors")).items():
        held = load_file(str(tmp_path / "one" / "small.safetensors"))[name]
        torch.testing.assert_close(value, held, rtol=1e-5, atol=1e-6)

    state = tmp_path / "one" / "small-step00000002-state"
    rest = train_here(shallow_sd1, thumbs, tmp_path / "rest", **plain, **looked_at, resume=state)
    assert rest.losses == one.losses[2:]
    same(tmp_path / "rest" / "small.safetensors", tmp_path / "one" / "small.safetensors")


def test_xl_trains_the_whole_weights_of_a_few_layers(tiny_sdxl: Path, thumbs: Path, tmp_path: Path) -> None:
    """Native fine-tuning takes the weights off the model's layers; what was trained is merged before the next run."""
    first = options(tmp_path, "algo=full", max_train_steps=2, mixed_precision="bf16")
    done = train_here(tiny_sdxl, thumbs, tmp_path / "out", "sdxl_train_network", **first)
    assert done.code == 0
    held = load_file(str(tmp_path / "out" / "small.safetensors"))
    assert {name.split("_")[1] for name in held} == {"te1", "te2", "unet"}
    idle = {name.split(".")[0] for name, value in held.items() if name.endswith("diff") and value.abs().max() < 1e-3}
    # SDXL reads the first text encoder before its last layer
    assert len(idle) == 2 and all(name.startswith("lora_te1_text_model_encoder_layers_") for name in idle)
    merged = options(
        tmp_path, "algo=lokr", max_train_steps=1, base_weights=[tmp_path / "out" / "small.safetensors"], seed=7
    )
    after = train_here(tiny_sdxl, thumbs, tmp_path / "after", "sdxl_train_network", **merged)
    assert after.code == 0
    without = {key: value for key, value in merged.items() if key != "base_weights"}
    before = train_here(tiny_sdxl, thumbs, tmp_path / "before", "sdxl_train_network", **without)
    assert after.losses != before.losses
