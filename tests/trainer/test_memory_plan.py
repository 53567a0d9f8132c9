"""The plan of a run's memory: against what a real step takes, against plain arithmetic, and for every trainer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from sd_scripts.models.tiny import save_tiny
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.parse import parse
from sd_scripts.train import main, pair
from sd_scripts.trainer.memory_plan import plan_memory, planned_device, sentences
from sd_scripts.trainer.setup import plan_of, scan
from tests.trainer.effects import FEW_BLOCKS
from tests.trainer.runs import ROOT, arguments, train_here

# Of a full-size SD 1.5 U-Net: weights, gradients, AdamW's two moments and the one copy of all weights that its step
# makes on CUDA, all float32. 859,520,964 weights.
FULL_SD15 = 859_520_964 * 4 * 5
# Models of these tests are so small that this many bytes of step counters and scalars count.
SCALARS = 20_000


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight grey pictures of 256 pixels in a folder with repeats, and the same in a flat one, which steers too."""
    root = tmp_path_factory.mktemp("pictures")
    for folder in (root / "train" / "1_x", root / "flat"):
        folder.mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (256, 256), (number * 20, 90, 90)).save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text("a photo of shs thing", encoding="utf-8")
    entries = {str(root / "flat" / f"{number}.png"): {"caption": "a photo"} for number in range(8)}
    (root / "entries.json").write_text(json.dumps(entries), encoding="utf-8")
    return root


def options_of(command: str, pictures: Path, **options: Any) -> dict[str, Any]:
    """What a command needs beside the model, to plan with the pictures."""
    values: dict[str, Any] = {"train_data_dir": pictures / "train", "resolution": 256, "enable_bucket": None}
    if "inversion" in command:
        values |= {"token_string": "shs", "init_word": "thing"}
    if "control" in command:
        values |= {"train_data_dir": pictures / "flat", "conditioning_data_dir": pictures / "flat"}
    if command == "sdxl_train_control_net_lllite":
        values |= {"cond_emb_dim": 32, "network_dim": 16}
    if command == "fine_tune":
        values |= {"train_data_dir": pictures / "flat", "in_json": pictures / "entries.json"}
    return values | options


def plan(
    model: Path, pictures: Path, out: Path, command: str = "train_network", device: str = "cuda", **options: Any
) -> dict[str, Any]:
    """The plan's facts for a command line."""
    values = options_of(command, pictures, **options)
    data = values.pop("train_data_dir")
    config = parse(command, arguments(model, data, out, command, min_bucket_reso=None, **values))
    family, method = pair(COMMANDS[command], config)
    found = scan(config, method, 1)
    return plan_memory(config, family, method, found.train, plan_of(config, found, 1), device)


def memory(*args: Any, **options: Any) -> dict[str, Any]:
    """The memory of a plan that must succeed."""
    facts = plan(*args, **options)
    assert facts["memory"] is not None, facts["memory_problem"]
    found: dict[str, Any] = facts["memory"]
    assert found["peak"] == sum(found[name] for name in ("weights", "gradients", "optimizer", "activations"))
    return found


@pytest.fixture(scope="module")
def few_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of version 1 with few layers: a plan goes through every operation of a step, one by one."""
    return save_tiny(tmp_path_factory.mktemp("models") / "few layers", "sd1", shallow=True)


@pytest.fixture(scope="module")
def base(few_layers: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The plan of a plain LoRA in bf16, with which variations are compared."""
    return memory(few_layers, pictures, tmp_path_factory.mktemp("base"), mixed_precision="bf16")


def measured(model: Path, pictures: Path, out: Path, command: str, **options: Any) -> int:
    """Bytes that a real run takes on top of what is loaded, in a process of its own."""
    argv = arguments(model, pictures / "train", out, command, min_bucket_reso=None, **options)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(ROOT),
        # Every tensor gets memory of its own and gives it back: what is resident is what is used.
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    program = Path(__file__).with_name("measured_memory.py")
    result = subprocess.run(
        [sys.executable, str(program), command, *argv],
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return int(json.loads(result.stdout.splitlines()[-1])["taken"])


needs_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts resident memory")


def both(tiny_sd1: Path, pictures: Path, out: Path, command: str, **options: Any) -> tuple[int, int]:
    """Bytes on top of the weights: predicted, and taken by a real run."""
    predicted = memory(tiny_sd1, pictures, out, command, device="cpu", **options)
    plain = options_of(command, pictures, **options)
    plain.pop("train_data_dir")
    taken = measured(tiny_sd1, pictures, out, command, **plain)
    assert taken > 150e6
    return predicted["peak"] - predicted["weights"], taken


@needs_linux
def test_the_prediction_is_what_a_real_step_takes(tiny_sd1: Path, pictures: Path, tmp_path: Path) -> None:
    predicted, taken = both(tiny_sd1, pictures, tmp_path, "train_network", train_batch_size=4, max_train_steps=1)
    assert predicted == pytest.approx(taken, rel=0.15)


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train_db", {"train_batch_size": 4}),
        ("train_network", {"train_batch_size": 8, "mixed_precision": "bf16", "resolution": 384}),
        ("train_network", {"train_batch_size": 4, "cache_latents": None}),
    ],
)
def test_other_real_steps_take_what_was_predicted(
    command: str, options: dict[str, Any], tiny_sd1: Path, pictures: Path, tmp_path: Path
) -> None:
    predicted, taken = both(tiny_sd1, pictures, tmp_path, command, **options)
    assert predicted == pytest.approx(taken, rel=0.15)


QUICK = ("train_db", "train_textual_inversion_XTI", "train_controlnet")


def trainers() -> Iterator[Any]:
    """Every trainer once; those whose plans take longer run with the slow tests."""
    for name in COMMANDS:
        if not name.endswith("_old"):
            yield pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("command", list(trainers()))
def test_every_trainer_has_a_plan(
    command: str, few_layers: Path, tiny_sd1: Path, tiny_sdxl: Path, pictures: Path, tmp_path: Path
) -> None:
    model = tiny_sdxl if COMMANDS[command].family == "sdxl" else few_layers
    if command.endswith("XTI"):
        model = tiny_sd1  # it has words for each of the 16 layers
    facts = plan(model, pictures, tmp_path, command, mixed_precision="bf16")
    assert facts["memory"] is not None, facts["memory_problem"]
    found, trained = facts["memory"], facts["trained_parameters"]
    assert trained > 0 and facts["memory_notes"] == []
    assert found["largest_bucket"] == [256, 256] and found["device"] == "cuda"
    # AdamW keeps two float32 numbers for each that is trained.
    assert found["optimizer"] == pytest.approx(8 * trained, abs=SCALARS)
    assert found["weights"] > 2 * trained
    assert found["activations"] > 1e6
    assert facts["files"][-1]["name"].startswith("small")
    assert facts["files"][-1]["bytes"] > 2 * trained or command.endswith(("db", "tune", "sdxl_train"))
    assert any("peak memory" in line for line in sentences(facts))


def test_weights_are_those_of_the_modules(tiny_sd1: Path, pictures: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    found = memory(tiny_sd1, pictures, tmp_path, "train_db", no_half_vae=True)
    total = 0
    for part in ("unet", "text_encoder"):
        (file,) = (tiny_sd1 / part).glob("*.safetensors")
        with safe_open(str(file), framework="pt") as handle:
            total += sum(handle.get_tensor(name).numel() for name in handle.keys())  # noqa: SIM118 (no mapping)
    assert found["weights"] == pytest.approx(4 * total, abs=SCALARS)


def test_weights_are_not_read(tiny_sd1_file: Path, pictures: Path, tmp_path: Path) -> None:
    """The same file with its tensors cut off: everything is known from the header."""
    content = tiny_sd1_file.read_bytes()
    hollow = tmp_path / "hollow.safetensors"
    length = 8 + int.from_bytes(content[:8], "little")
    hollow.write_bytes(content[:length])
    os.truncate(hollow, len(content))
    options = {"mixed_precision": "bf16", "network_train_unet_only": True, "network_args": [FEW_BLOCKS]}
    whole = memory(tiny_sd1_file, pictures, tmp_path, **options)
    assert memory(hollow, pictures, tmp_path, **options) == whole


# Options of different parts stand together: each part of a plan is told by one of them.
FACTORS: list[tuple[dict[str, Any], dict[str, tuple[float, float]]]] = [
    (
        {"gradient_checkpointing": True, "network_dim": 8},
        {"activations": (0.05, 0.6), "optimizer": (1.95, 2.05)},
    ),
    ({"train_batch_size": 3, "optimizer_type": "Lion"}, {"activations": (2.7, 3.1), "optimizer": (0.45, 0.55)}),
    ({"resolution": 128, "optimizer_type": "Prodigy"}, {"activations": (0.15, 0.4), "optimizer": (1.9, 2.1)}),
    ({"fp8_base": True, "network_train_unet_only": True}, {"weights": (0.4, 0.75), "optimizer": (0.5, 0.9)}),
    ({"mixed_precision": "no"}, {"weights": (1.9, 2.1)}),
    ({"cache_latents": None}, {"weights": (1.1, 1.6)}),
    ({"gradient_accumulation_steps": 2}, {"activations": (0.99, 1.01)}),
]


@pytest.mark.parametrize(("options", "factors"), FACTORS, ids=lambda value: " ".join(value))
def test_options_count(
    options: dict[str, Any],
    factors: dict[str, tuple[float, float]],
    base: dict[str, Any],
    few_layers: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    found = memory(few_layers, pictures, tmp_path, **{"mixed_precision": "bf16", **options})
    for part, (least, most) in factors.items():
        assert least < found[part] / base[part] < most, part
    if "gradient_accumulation_steps" in options:
        assert found["gradients"] == pytest.approx(base["optimizer"] / 2, abs=SCALARS)


@pytest.mark.slow
def test_cached_texts_need_no_encoders(tiny_sdxl: Path, pictures: Path, tmp_path: Path) -> None:
    common = {"command": "sdxl_train_network", "mixed_precision": "bf16", "network_train_unet_only": True}
    plain = memory(tiny_sdxl, pictures, tmp_path, **common)
    cached = memory(tiny_sdxl, pictures, tmp_path, cache_text_encoder_outputs=True, **common)
    assert cached["weights"] < 0.6 * plain["weights"]


@pytest.mark.slow
def test_fused_backward_holds_no_gradients(tiny_sdxl: Path, pictures: Path, tmp_path: Path) -> None:
    adafactor = {"optimizer_type": "AdaFactor", "optimizer_args": ["relative_step=False", "scale_parameter=False"]}
    common = {"command": "sdxl_train", "mixed_precision": "bf16", "full_bf16": True, "resolution": 64, **adafactor}
    plain = memory(tiny_sdxl, pictures, tmp_path, **common)
    fused = memory(tiny_sdxl, pictures, tmp_path, fused_backward_pass=True, **common)
    assert plain["optimizer"] == fused["optimizer"] < 0.1 * plain["weights"] * 4
    assert fused["gradients"] < 0.5e6


def test_states_of_bitsandbytes_follow_its_documented_sizes() -> None:
    from sd_scripts.networks.base import ParameterGroup
    from sd_scripts.schema.optimizer import OptimizerOptions
    from sd_scripts.trainer.optimizer_memory import optimizer_need

    group = ParameterGroup("g", [nn.Parameter(torch.empty(4096)), nn.Parameter(torch.empty(4095))], 1e-4)

    def state(name: str, *arguments: str) -> int:
        options = OptimizerOptions(optimizer_type=name, optimizer_args=list(arguments))
        return optimizer_need(None, [group], options, several_at_once=True).state  # type: ignore[arg-type]

    assert state("AdamW8bit") == 2 * (4096 + 16 * 4) + 2 * 4 * 4095
    assert state("Lion8bit") == 4096 + 16 * 4 + 4 * 4095
    assert state("PagedAdamW32bit") == 2 * 4 * (4096 + 4095)
    assert state("AdamW8bit", "min_8bit_size=10") == 2 * (4096 + 16 * 4) + 2 * (4095 + 16 * 4)


def test_files_have_the_names_and_sizes_of_a_run(tiny_sd1: Path, pictures: Path, tmp_path: Path) -> None:
    options = {"save_every_n_steps": 1, "save_precision": "fp16", "max_train_steps": 2, "save_state_on_train_end": True}
    facts = plan(tiny_sd1, pictures, tmp_path, **options)
    assert [file["name"] for file in facts["files"]] == [
        "small-step00000001.safetensors",
        "small-step00000002.safetensors",
        "small.safetensors",
        "small-state",
    ]
    real = {**options, "resolution": 64, "enable_bucket": None, "no_metadata": True}
    assert train_here(tiny_sd1, pictures / "train", tmp_path, **real).code == 0
    for file in facts["files"][:3]:
        assert file["bytes"] == pytest.approx((tmp_path / file["name"]).stat().st_size, rel=0.05)
    state = sum(file.stat().st_size for file in (tmp_path / "small-state").iterdir())
    assert facts["files"][3]["bytes"] == pytest.approx(state, rel=0.2)


def test_a_plan_without_memory_is_a_plan(tiny_sd1: Path, pictures: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_sd1, broken)
    (broken / "unet" / "config.json").write_text("{", encoding="utf-8")
    facts = plan(broken, pictures, tmp_path)
    assert facts["memory"] is None
    assert "config.json is damaged" in facts["memory_problem"]
    assert [file["name"] for file in facts["files"]] == ["small.safetensors"]


def test_plan_only_prints_it(
    tiny_sd1: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert planned_device() == "cpu"
    options = {"resolution": 256, "enable_bucket": None, "plan_only": True}
    assert main("train_network", arguments(tiny_sd1, pictures / "train", tmp_path, **options)) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["memory"]["peak"] > facts["memory"]["weights"] > 0
    assert facts["memory"]["device"] == "cpu" and facts["total_steps"] == 4
    assert facts["trained_parameters"] > 0 and facts["files"][0]["name"] == "small.safetensors"
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.slow
def test_full_size_fine_tuning_takes_16_gib(pictures: Path, tmp_path: Path) -> None:
    from sd_scripts.models.assets import model_config
    from tests.trainer.hollow_model import hollow_folder

    model = hollow_folder(tmp_path / "full", model_config("sd1"))
    found = memory(model, pictures, tmp_path, "train_db", mixed_precision="bf16", stop_text_encoder_training=-1)
    assert pytest.approx(16.0 * 2**30, rel=0.002) == FULL_SD15
    text = 123_060_480 * 2
    assert found["peak"] - text == pytest.approx(16.0 * 2**30, rel=0.05)
