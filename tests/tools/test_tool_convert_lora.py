"""LoRA files renamed: there and back bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_kit import assert_same, convert, notes, some_network
from safetensors.torch import load_file, save_file
from torch import Tensor

from sd_scripts.networks.hashes import with_hashes
from sd_scripts.tools import convert_lora

BASE = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
CROSS = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
DATA = Path(__file__).parents[1] / "networks" / "data"
PROJ = "lora_unet_down_blocks_0_attentions_0_proj_in"
TWICE = ("middle_block_1_proj_in", "mid_block_attentions_0_proj_in")
SDXL_Q = "input_blocks_4_1_transformer_blocks_0_attn1_to_q"


def known_names(version: str) -> list[str]:
    """All names, of SDXL's every fifth."""
    if version == "sdxl":
        return list(json.loads((DATA / "lora_names_sdxl.json").read_text(encoding="utf-8")))[::5]
    return [row[0] for row in json.loads((DATA / "lora_modules.json").read_text(encoding="utf-8"))[version]]


def every_module(version: str) -> dict[str, Tensor]:
    """Modules of a version, tiny, of several ranks; alpha in two types, some 0, some missing; some DoRA."""
    tensors: dict[str, Tensor] = {}
    for number, name in enumerate(known_names(version)):
        rank = 1 + number % 3
        conv = name.endswith(("conv1", "conv2", "in_layers_2", "out_layers_3", "_op", "_0_conv", "_2_conv"))
        pointwise = version != "sdxl" and name.endswith(("proj_in", "proj_out"))
        sides = (3, 3) if conv else (1, 1) if pointwise else ()
        width = CROSS[version] if name.endswith("attn2_to_k") else 2
        tensors[f"{name}.lora_down.weight"] = torch.full((rank, width, *sides), number / 8).half()
        tensors[f"{name}.lora_up.weight"] = torch.full((3, rank, *((1, 1) if sides else ())), -number / 8).half()
        if number % 7:
            kind = torch.float16 if number % 2 else torch.float32
            tensors[f"{name}.alpha"] = torch.tensor(number % 5 / 2, dtype=kind)
        if number % 11 == 0:
            tensors[f"{name}.dora_scale"] = torch.rand(3, 1, *((1, 1) if sides else ()))
    return tensors


@pytest.mark.parametrize(
    "version, to", [("sd1", "peft"), ("sd2", "diffusers"), ("sdxl", "peft"), ("sdxl", "kohya_diffusers")]
)
def test_there_and_back_is_the_same_file(tmp_path: Path, version: str, to: str) -> None:
    tensors = every_module(version)
    own = {"ss_base_model_version": BASE[version], "modelspec.title": "猫"}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, with_hashes(tensors, own))
    there = convert(path, tmp_path / "b.safetensors", to)
    assert not set(load_file(there)) & {name for name in tensors if name.startswith("lora_unet_")}
    assert ("sshs_model_hash" in notes(there)) == to.startswith("kohya")
    assert_same(path, convert(there, tmp_path / "c.safetensors", "kohya"))
    if version == "sd2":
        save_file(tensors, path)
        convert(path, there, to)
        assert_same(path, convert(there, tmp_path / "c.safetensors", "kohya", "--family", version))


def test_sdxl_blocks_are_spelled_as_diffusers_does(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {f"lora_unet_{SDXL_Q}.lora_{part}.weight": torch.ones(2, 2) for part in ("up", "down")}
    save_file(tensors, path)
    found = load_file(convert(path, tmp_path / "b.safetensors", "kohya_diffusers"))
    assert set(found) == {
        f"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.{part}.weight"
        for part in ("lora_up", "lora_down")
    }


# ---- what is told, and what is refused


def test_an_adapter_of_peft_is_read(tmp_path: Path) -> None:
    q = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    path = tmp_path / "adapter_model.safetensors"
    save_file({f"{q}.lora_A.weight": torch.ones(2, 4), f"{q}.lora_B.weight": torch.ones(4, 2)}, path)
    there = convert(path, tmp_path / "b.safetensors", "kohya")
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert set(load_file(there)) == {f"{name}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert load_file(there)[f"{name}.alpha"] == 2
    assert_same(path, convert(there, tmp_path / "c.safetensors", "peft"))


def test_unusual_names_become_usual_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({f"{PROJ}.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}, path)
    usual = {f"{PROJ}.lora_{part}.weight" for part in ("up", "down")}
    assert set(load_file(convert(path, tmp_path / "b.safetensors", "kohya"))) == usual
    layer = "unet.down_blocks.0.attentions.0.proj_in"
    tensors = {f"{layer}.lora.{part}.weight": torch.ones(2, 2) for part in ("up", "down")}
    save_file({**tensors, f"{layer}.alpha": torch.tensor(1.5).half()}, path)
    there = convert(path, tmp_path / "b.safetensors", "kohya")
    assert float(load_file(there)[f"{PROJ}.alpha"]) == 1.5
    assert_same(path, convert(there, tmp_path / "c.safetensors", "diffusers"))


def test_what_was_remembered_counts_for_the_same_tensors_only(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(some_network("sd1", False), path, {"ss_base_model_version": "sd_v1"})
    there = convert(path, tmp_path / "b.safetensors", "peft")
    tensors = load_file(there)
    tensors[next(iter(tensors))] += 1
    other = tmp_path / "c.safetensors"
    save_file(tensors, other, notes(there))
    back = convert(other, tmp_path / "d.safetensors", "kohya")
    assert "sshs_model_hash" in notes(back) and "convert_lora" in notes(back)


@pytest.mark.parametrize(
    "change",
    [
        {"names": []},
        {"names": {"a": "x", "b": "x"}},
        {"metadata": {"a": 1}},
        {"alpha": "F32:99999,99999:1"},
        {"alpha": "F32::inf"},
        {"alpha": "X::"},
        {"alphas": {"a": 1}},
        {"shapes": {"a": ["x"]}},
        {"style": "other"},
        {"tensors": 1},
        None,
    ],
)
def test_a_note_that_somebody_changed_does_not_count(tmp_path: Path, change: dict[str, Any] | None) -> None:
    path = tmp_path / "a.safetensors"
    save_file({f"{PROJ}.lora_{part}.weight": torch.ones(2, 2, 1, 1) for part in ("up", "down")}, path)
    there = convert(path, tmp_path / "b.safetensors", "peft")
    table = json.loads(notes(there)["convert_lora"])
    broken = "[" if change is None else json.dumps({**table, **change})
    save_file(load_file(there), there, {**notes(there), "convert_lora": broken})
    back = convert(there, tmp_path / "c.safetensors", "kohya")
    # as for a file that was never anything else: with alpha and fingerprints
    assert set(load_file(back)) == {f"{PROJ}.{part}" for part in ("lora_up.weight", "lora_down.weight", "alpha")}
    assert "sshs_model_hash" in notes(back)


def test_number_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    save_file(some_network("sd1", False), path, {"sshs_model_hash": "0", "sshs_legacy_hash": "0"})
    half = convert(path, tmp_path / "b.safetensors", "kohya", "--save_precision", "bf16")
    assert {value.dtype for value in load_file(half).values()} == {torch.bfloat16}
    assert notes(half)["sshs_model_hash"] == with_hashes(load_file(half), {})["sshs_model_hash"]
    save_file({name: value * 1e6 for name, value in some_network("sd1", False).items()}, path)
    more = ("--to", "peft", "--save_precision", "fp16")
    assert convert_lora.main(["--model", str(path), "--save_to", str(tmp_path / "c.safetensors"), *more]) == 2
    assert "more than the number format fp16 holds. Choose bf16 or float." in capsys.readouterr().err
    assert not list(tmp_path.glob("*c.*"))


def test_lyco_kinds_are_renamed_where_there_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    parts = {part: torch.ones(2, 2) for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")}
    save_file({f"{PROJ}.{part}": value for part, value in {**parts, "alpha": torch.tensor(1.0)}.items()}, path)
    there = convert(path, tmp_path / "b.safetensors", "peft")
    assert "unet.down_blocks.0.attentions.0.proj_in.hada_w1_a" in load_file(there)
    assert_same(path, convert(there, tmp_path / "c.safetensors", "kohya", "--family", "sd1"))


@pytest.mark.parametrize(
    "names, shape, to, words",
    [
        ([f"{PROJ}.diff"], (2, 2), "peft", "of kind full"),
        ([f"{PROJ}.lora_{part}.weight" for part in ("up", "down", "mid")], (2, 2, 1, 1), "diffusers", "lora_mid"),
        ([f"lora_unet_nowhere.lora_{part}.weight" for part in ("up", "down")], (2, 2), "peft", "no layer"),
        ([f"unet.mid_block.attentions.0.proj_in.lora_{part}.weight" for part in "AB"], (2, 2), "kohya", "which base"),
        ([f"{PROJ}.lora_{part}.weight" for part in ("up", "down")], (2, 2), "kohya", "already"),
        ([f"{PROJ}.lora_{part}.weight" for part in ("up", "down")], (2, 2), "kohya_diffusers", "not for SDXL"),
        ([f"{PROJ}.{part}" for part in ("lora_up.weight", "lora_down.weight", "dora_scale")], (1, 2), "peft", "column"),
        (["emb_params"], (2, 2), "peft", "no network file"),
        (
            [f"lora_unet_{name}.lora_{part}.weight" for name in TWICE for part in ("up", "down")],
            (2, 2),
            "peft",
            "belong to no module",
        ),
    ],
)
def test_what_cannot_be_renamed_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], shape: tuple[int, ...], to: str, words: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_file({name: torch.ones(shape) for name in names}, path)
    target = tmp_path / "b.safetensors"
    assert convert_lora.main(["--model", str(path), "--save_to", str(target), "--to", to]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not target.exists()


def test_files_in_the_way_and_other_endings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    save_file(some_network("sd1", False), path)
    for target, words in ((tmp_path / "b.pt", "end in .safetensors"), (path, "already")):
        assert convert_lora.main(["--model", str(path), "--save_to", str(target), "--to", "peft"]) == 2
        assert words in capsys.readouterr().err
    before = load_file(path)
    convert(path, path, "peft")
    convert(path, path, "kohya")
    assert all(torch.equal(value, before[name]) for name, value in load_file(path).items())
