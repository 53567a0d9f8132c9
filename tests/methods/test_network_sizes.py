"""The page tells the size of every kind of network before it is trained: as many numbers as its file then holds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from network_kit import attached, model

from kohya_gui import command, network_sizes

SIZE = {"network_dim": 4, "network_alpha": 2.0}
CONV = {"conv_dim": 2, "conv_alpha": 1.0}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("Standard", {"dora_wd": True, "init_lora_weights": "pissa", "network_train_unet_only": True}),
    ("Kohya LoCon", {**CONV, "dora_wd": True}),
    ("LoRA-FA", CONV),
    ("Kohya LoHa", {**CONV, "use_tucker": True}),
    ("Kohya LoKr", {**CONV, "use_tucker": True, "factor": 4}),
    ("Kohya OFT", {"enable_conv": True}),
    ("LyCORIS/LoCon", {**CONV, "use_tucker": True, "dora_wd": True}),
    ("LyCORIS/LoKr", {**CONV, "decompose_both": True, "network_dim": 1, "dora_wd": True}),
    ("LyCORIS/iA3", {"LyCORIS_preset": "ia3"}),
    ("LyCORIS/Diag-OFT", {"rescaled": True}),
    ("LyCORIS/BOFT", {"network_dim": 8, "LyCORIS_preset": "attn-only"}),
]
SELDOM: list[tuple[str, dict[str, Any]]] = [
    ("Kohya LoCon", {**CONV, "init_lora_weights": "pissa", "network_train_text_encoder_only": True}),
    ("Kohya DyLoRA", {"conv_dim": 4, "unit": 2}),
    ("Kohya OFT", {"enable_all_linear": True}),
    ("LyCORIS/GLoRA", {**CONV, "LyCORIS_preset": "full-lin"}),
    ("LyCORIS/iA3", {"LyCORIS_preset": "unet-transformer-only", "train_on_input": True}),
    ("LyCORIS/DyLoRA", {"unit": 2, "LyCORIS_preset": "unet-convblock-only"}),
    ("LyCORIS/LoHa", {"LyCORIS_preset": "attn-mlp"}),
    ("LyCORIS/Native Fine-Tuning", {"LyCORIS_preset": "unet-only"}),
]
EVERY = [*CASES, *[pytest.param(*case, marks=pytest.mark.slow) for case in SELDOM]]
_BESIDE = (".alpha", ".on_input", ".scalar")


def told_and_written(kind: str, settings: dict[str, Any], path: Path, version: str) -> tuple[Any, int, int]:
    """What the page tells; and what is trained and written, alphas aside."""
    values = {**SIZE, "LoRA_type": kind, **settings, "pretrained_model_name_or_path": str(path)}
    sent = command.build("sdxl_train_network" if version == "sdxl" else "train_network", values).toml
    keys = ("network_module", "network_dim", "network_alpha", "network_args")
    parts = {key: settings[key] for key in settings if key.startswith("network_train")}
    made = attached(model(version), **{key: sent.get(key) for key in keys}, **parts)
    made.parameter_groups()
    trained = sum(parameter.numel() for parameter in made.trainable_parameters() if parameter.dim())
    network: Any = made.module
    tensors = network.file_tensors() if hasattr(network, "file_tensors") else network.state_dict()
    in_file = sum(value.numel() for key, value in tensors.items() if not key.endswith(_BESIDE))
    return network_sizes.numbers(values, version), trained, in_file


@pytest.mark.parametrize(("kind", "settings"), EVERY)
def test_the_page_tells_what_the_file_holds(kind: str, settings: dict[str, Any], tiny_sd1: Path) -> None:
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    told, trained, in_file = told_and_written(kind, settings, tiny_sd1, "sd1")
    assert told == (trained, in_file)


@pytest.mark.parametrize("kind", ["Kohya LoCon", pytest.param("LyCORIS/LoKr", marks=pytest.mark.slow)])
def test_sdxl(kind: str, shallow_sdxl: Path) -> None:
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    told, trained, in_file = told_and_written(kind, CONV, shallow_sdxl, "sdxl")
    assert told == (trained, in_file)


def test_what_the_form_does_not_tell_is_not_guessed() -> None:
    values = {**SIZE, "LoRA_type": "Standard"}
    assert network_sizes.numbers(values, "sd1") == (4 * (423_936 + 165_888),) * 2
    assert network_sizes.numbers({**values, "network_train_unet_only": True}, "sdxl") == (4 * 2_659_840,) * 2
    for more in (
        {"block_dims": "1"},
        {"network_args": ["conv_dim=4"]},
        {"LoRA_type": "Custom"},
        {"dim_from_weights": True},
        {"LoRA_type": "LyCORIS/LoCon", "LyCORIS_preset": "own.toml"},
        {"LoRA_type": "LyCORIS/LoCon", "train_norm": True},
        {"LoRA_type": "Kohya OFT", "network_dim": 7},
    ):
        assert network_sizes.numbers({**values, **more}, "sd1") is None, more
