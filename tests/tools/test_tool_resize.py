"""LoRA files made smaller."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from extract_kit import effect, read
from safetensors.torch import load_file, save_file
from torch import Tensor

from sd_scripts.networks import resize_lora
from sd_scripts.networks.changes import changed
from sd_scripts.tools import resize_lora as old_resize_lora

CASES: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "data" / "resize.json").read_text(encoding="utf-8")
)


def made(lines: list[str], down: str = "lora_down", up: str = "lora_up") -> dict[str, Tensor]:
    """`name: down=torch.randn(4, 6); up=torch.randn(5, 4); alpha=2.0` -> tensors of a file."""
    found: dict[str, Tensor] = {}
    for line in lines:
        if line.startswith("torch.manual_seed("):
            torch.manual_seed(int(line.removeprefix("torch.manual_seed(").rstrip(")")))
            continue
        name, _, rest = line.partition(": ")
        for part in rest.split("; "):
            key, _, text = part.partition("=")
            if key == "alpha":
                found[f"{name}.alpha"] = torch.tensor(float(text))
                continue
            shape = [int(number) for number in text.removeprefix("torch.randn(").rstrip(")").split(",")]
            found[f"{name}.{down if key == 'down' else up}.weight"] = torch.randn(*shape)
    return found


def resize(model: Path, target: Path, *more: object) -> int:
    return resize_lora.main([str(item) for item in ("--model", model, "--save_to", target, *more)])


def options_of(case: dict[str, Any]) -> list[object]:
    method = case["method"]
    ranks = ["--new_rank", case["new_rank"], "--new_conv_rank", case["new_conv_rank"]]
    return ranks if method is None else [*ranks, "--dynamic_method", method, "--dynamic_param", case["param"]]


@pytest.mark.parametrize("case", CASES["resize"], ids=lambda case: f"{case['method']} {case['new_rank']}")
def test_ranks_alphas_and_products_as_known(case: dict[str, Any], tmp_path: Path) -> None:
    model, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(made(case["recipe"]), model)
    assert resize(model, target, *options_of(case), "--legacy") == 0
    modules, _ = read(target)
    for name, known in case["modules"].items():
        module = modules[name]
        assert (module["lora_down.weight"].shape[0], float(module["alpha"])) == (known["rank"], known["alpha"])
        product, wanted = effect(module), known["product_times_alpha_over_rank"]
        if "data" in wanted:
            assert torch.allclose(product.flatten(), torch.tensor(wanted["data"]).double(), rtol=1e-4, atol=1e-5)
        else:
            assert float(product.square().sum()) == pytest.approx(wanted["sumsq"], rel=1e-5)
            assert product.flatten()[-8:].tolist() == pytest.approx(wanted["last8"], rel=1e-4, abs=1e-5)
    if case["method"] is not None:
        # without the rank too many
        assert resize(model, target, *options_of(case), "--overwrite") == 0
        for name, module in read(target)[0].items():
            values = torch.tensor(case["modules"][name]["singular_values_before"]["data"]).double()
            weights = values ** (2 if case["method"] == "sv_fro" else 1)
            share = case["param"] ** (2 if case["method"] == "sv_fro" else 1)
            rank = module["lora_down.weight"].shape[0]
            assert float(weights[:rank].sum() / weights.sum()) >= share
            assert float(weights[: rank - 1].sum() / weights.sum()) < share


def test_half_precision_against_float64(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {
        "lora_unet_a.lora_down.weight": torch.randn(16, 90),
        "lora_unet_a.lora_up.weight": torch.randn(70, 16),
        "lora_unet_c.lora_down.weight": torch.randn(16, 8, 3, 3),
        "lora_unet_c.lora_up.weight": torch.randn(40, 16, 1, 1),
        "lora_unet_c.alpha": torch.tensor(8.0),
    }
    model, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({name: value.half() for name, value in tensors.items()}, model)
    assert resize(model, target, "--new_rank", 5) == 0
    before, after = read(model)[0], read(target)[0]
    before["lora_unet_a"]["alpha"] = torch.tensor(16.0)  # what none means
    for name, module in after.items():
        left, values, right = torch.linalg.svd(effect(before[name]), full_matrices=False)
        wanted = (left[:, :5] * values[:5]) @ right[:5]
        assert float((effect(module) - wanted).norm()) <= 1e-5 * float(wanted.norm())
        assert module["lora_up.weight"].dtype == torch.float32
    assert float(after["lora_unet_a"]["alpha"]) == 5 and float(after["lora_unet_c"]["alpha"]) == 2.5
    # a larger rank changes nothing, but can be trained
    assert resize(model, target, "--new_rank", 20, "--save_precision", "bf16", "--overwrite") == 0
    for name, module in read(target)[0].items():
        assert module["lora_down.weight"].shape[0] == 20 and bool(module["lora_down.weight"].any(dim=1).all())
        assert float((effect(module) - effect(before[name])).norm()) <= 1e-2 * float(effect(before[name]).norm())


def test_what_the_file_says_of_itself(tmp_path: Path) -> None:
    model, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    case = CASES["resize"][0]
    notes = {
        "ss_network_dim": "4",
        "ss_training_comment": "mine",
        "ss_network_args": '{"conv_dim": "4", "conv_alpha": "1.0", "dropout": "0.1"}',
        "sshs_model_hash": "old",
    }
    lora = {name: value for name, value in made(case["recipe"]).items() if "lora_unet_b" not in name}
    save_file(lora, model, notes)
    assert resize(model, target, "--new_rank", 3, "--new_conv_rank", 2) == 0
    metadata = read(target)[1]
    assert metadata["ss_training_comment"] == "dimension is resized from 4 to 3 (conv: 2); mine"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("3", "1.5")
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "0.5", "dropout": "0.1"}
    assert len(metadata["sshs_model_hash"]) == 64
    assert resize(model, target, "--dynamic_method", "sv_fro", "--dynamic_param", "0.9", "--overwrite") == 0
    metadata = read(target)[1]
    assert metadata["ss_training_comment"] == "Dynamic resize with sv_fro: 0.9 from 4; mine"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("Dynamic", "Dynamic")
    # in place of itself
    assert resize(target, target, "--new_rank", 1, "--overwrite") == 0
    assert read(target)[0]["lora_unet_c"]["lora_down.weight"].shape == (1, 3, 3, 3)


def test_statistics_of_every_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rotation, _ = torch.linalg.qr(torch.randn(8, 8))
    values = torch.tensor([8, 4, 2, 1, 0.5, 0.25, 0.125, 0.0625])
    tensors = {
        "lora_unet_a.lora_down.weight": rotation.contiguous(),
        "lora_unet_a.lora_up.weight": torch.diag(values),
        "lora_unet_a.alpha": torch.tensor(4.0),
        "lora_unet_b.lora_down.weight": torch.ones(8, 4),
        "lora_unet_b.lora_up.weight": torch.zeros(4, 8),
    }
    model, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(tensors, model)
    assert resize(model, target, "--new_rank", 3, "--verbose", "--dynamic_param", 0.5) == 0
    text = capsys.readouterr().out
    assert "note: dynamic_param does nothing without a dynamic_method" in text
    assert "lora_unet_a: rank 3, alpha 1.5, 87.8% of the sum and 99.2% of the norm kept, largest / smallest 4.0" in text
    assert "lora_unet_b: rank 1, alpha 1, nan% of the sum" in text
    assert "of the norms, 99.22% are kept on average, with a standard deviation of 0.000" in text


@pytest.mark.parametrize("case", CASES["names"], ids=lambda case: case["key_names"][0])
def test_names_and_other_tensors_stay(case: dict[str, Any], tmp_path: Path) -> None:
    model, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    down, up = case["key_names"]
    lora = made(case["recipe"], down, up)
    save_file({**lora, "bundle_emb.me.string_to_param.*": torch.ones(1, 4)}, model)
    assert resize(model, target, "--new_rank", case["new_rank"]) == 0
    found = load_file(target)
    assert sorted(found) == sorted([*case["keys"], "bundle_emb.me.string_to_param.*"])
    product = found[f"lora_unet_a.{up}.weight"] @ found[f"lora_unet_a.{down}.weight"]
    product = product * float(found["lora_unet_a.alpha"]) / case["new_rank"]
    # the known product is the bare one
    bare = product * case["new_rank"] / case["new_alpha"]
    assert float(found["lora_unet_a.alpha"]) == case["new_alpha"]
    assert torch.allclose(bare.flatten(), torch.tensor(case["product"]["data"]), rtol=1e-4, atol=1e-5)


def test_decomposed_weights_and_other_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    up, down = torch.randn(10, 3) * 0.1, torch.randn(3, 12) * 0.1
    tensors = {
        # of rank 3 only, so that rank 3 says all of it
        "lora_unet_a.lora_down.weight": torch.cat([down, down]),
        "lora_unet_a.lora_up.weight": torch.cat([up, up], dim=1),
        "lora_unet_a.alpha": torch.tensor(3.0),
        "lora_unet_a.dora_scale": torch.rand(1, 12) + 0.5,
        "lora_unet_n.w_norm": torch.randn(10),
    }
    save_file(tensors, model)
    assert resize(model, target, "--new_rank", 3) == 0
    assert "1 modules (lora_unet_n) are no LoRA and are copied as they are" in capsys.readouterr().out
    modules, _ = read(target)
    weight = torch.randn(10, 12)
    before, after = (changed(read(path)[0]["lora_unet_a"], weight, None, 1.0)[0] for path in (model, target))
    assert torch.allclose(before, after, atol=1e-5) and not torch.allclose(before, weight, atol=0.1)
    assert torch.equal(modules["lora_unet_n"]["w_norm"], tensors["lora_unet_n.w_norm"])


def test_what_cannot_be_resized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(made(CASES["resize"][0]["recipe"]), model)

    def refused(*arguments: Any) -> str:
        assert resize(*arguments) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1 and "Traceback" not in text
        return text

    assert "sv_ratio needs a number 2 or more" in refused(model, target, "--dynamic_method", "sv_ratio")
    for method, param in (("sv_ratio", 1.5), ("sv_fro", 2), ("sv_cumulative", 0)):
        text = refused(model, target, "--dynamic_method", method, "--dynamic_param", param)
        assert f"dynamic_param is {param:g}, but {method} needs a number" in text
    assert "new_rank" in refused(model, target, "--new_rank", 0)
    assert "there already" in refused(model, model)
    loha = {f"lora_unet_a.hada_{part}": torch.ones(2, 2) for part in ("w1_a", "w1_b", "w2_a", "w2_b")}
    save_file(loha, tmp_path / "loha.safetensors")
    assert "holds modules of kind loha, and only LoRA can be resized" in refused(tmp_path / "loha.safetensors", target)
    broken = made(CASES["resize"][0]["recipe"])
    broken["lora_unet_b.lora_up.weight"][0, 0] = math.nan
    save_file(broken, tmp_path / "broken.safetensors")
    assert "lora_unet_b holds values that are not finite" in refused(tmp_path / "broken.safetensors", target)
    large = made(CASES["resize"][0]["recipe"])
    large["lora_unet_b.lora_up.weight"] *= 1e6
    save_file(large, tmp_path / "large.safetensors")
    text = refused(tmp_path / "large.safetensors", target, "--save_precision", "fp16")
    assert "lora_unet_b.lora_up.weight has values that are larger than fp16 holds. Choose bf16 or float." in text
    assert not target.exists()


def test_the_old_path_takes_one_rank(tmp_path: Path) -> None:
    model, target = tmp_path / "a.safetensors", tmp_path / "b.pt"
    save_file(made(CASES["resize"][0]["recipe"]), model)
    arguments = ["--model", str(model), "--save_to", str(target), "--new_rank", "2", "--save_precision", "fp16"]
    assert old_resize_lora.main(arguments) == 0
    found = torch.load(target, weights_only=True)
    assert found["lora_unet_c.lora_down.weight"].shape == (2, 3, 3, 3)
    assert found["lora_unet_a.lora_up.weight"].dtype == torch.float16
