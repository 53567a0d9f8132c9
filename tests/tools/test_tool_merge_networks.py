"""LoRA files merged into one: exactly the sum side by side, the nearest of a rank else, and as it once was."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sd_scripts.networks import merge_lora, merge_lora_old, sdxl_merge_lora, svd_merge_lora
from sd_scripts.networks.changes import changed, difference
from sd_scripts.networks.hashes import network_hashes
from sd_scripts.networks.netfile import open_network
from sd_scripts.tools.lora import block_weights
from sd_scripts.tools.lora.layer_shapes import kernel_of, matrix_of

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "merge.json").read_text(encoding="utf-8"))
SD1 = {"ss_base_model_version": "sd_v1", "ss_v2": "False"}


def drawn(recipe: dict[str, Any]) -> dict[str, Tensor]:
    """The LoRA that a recipe of the vectors stands for; the draws are torch's."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe["seed"])
        tensors: dict[str, Tensor] = {}
        for name, down, up, alpha in recipe["modules"]:
            tensors[f"{name}.lora_down.weight"] = torch.randn(*down)
            tensors[f"{name}.lora_up.weight"] = torch.randn(*up)
            if alpha is not None:
                tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, SD1 if metadata is None else metadata)
    return path


def effect(path: Path, module: str) -> Tensor:
    """What a module of a file adds, as a matrix in float64."""
    file = open_network(path)
    rows, columns = matrix_of(file.kind(module), file.shapes(module))
    return difference(file.tensors(module), (rows, columns), 1.0, dtype=torch.float64)


def run(script: Any, target: Path, models: list[Path], ratios: list[float], *more: str) -> int:
    arguments = ["--save_to", target, "--models", *models, "--ratios", *ratios, *more]
    return int(script.main([str(argument) for argument in arguments]))


def files(folder: Path, recipes: list[dict[str, Any]]) -> list[Path]:
    return [write(folder / f"{number}.safetensors", drawn(recipe)) for number, recipe in enumerate(recipes)]


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    return float((one - other).norm()) <= tolerance * max(float(other.norm()), 1e-6)


@pytest.mark.parametrize("case", VECTORS["merge_lora"])
def test_legacy_gives_the_old_numbers(case: dict[str, Any], tmp_path: Path) -> None:
    models = files(tmp_path, case["models"])
    more = ["--legacy", *(["--concat"] if case["concat"] else [])]
    target = tmp_path / "out.safetensors"
    assert run(merge_lora, target, models, case["ratios"], *more) == 0
    file = open_network(target)
    assert set(file) == set(case["modules"])
    for module, known in case["modules"].items():
        assert (file.rank(module), file.alpha(module)) == (known["rank"], known["alpha"])
        assert close(effect(target, module).flatten(), torch.tensor(known["effect"], dtype=torch.float64))


@pytest.mark.parametrize("case", VECTORS["merge_lora"])
def test_side_by_side_is_exactly_the_sum(case: dict[str, Any], tmp_path: Path) -> None:
    models = files(tmp_path, case["models"])
    target = tmp_path / "out.safetensors"
    ratios = [1.5, -0.4][: len(models)]
    assert run(merge_lora, target, models, ratios, "--concat", "--shuffle", "--seed", "3") == 0
    for module in case["modules"]:
        having = [(model, ratio) for model, ratio in zip(models, ratios) if module in open_network(model).modules]
        total = sum(effect(model, module) * ratio for model, ratio in having)
        assert isinstance(total, Tensor) and close(effect(target, module), total, 1e-6)
        assert open_network(target).rank(module) == sum(open_network(model).rank(module) or 0 for model, _ in having)


@pytest.mark.parametrize("ratio", [1.0, 0.5, -0.3, 2.0])
def test_a_ratio_counts_once(ratio: float, tmp_path: Path) -> None:
    source = files(tmp_path, VECTORS["merge_lora"][0]["models"])[0]
    target = tmp_path / "out.safetensors"
    assert run(merge_lora, target, [source], [ratio]) == 0
    for module in open_network(source):
        assert close(effect(target, module), effect(source, module) * ratio, 1e-6)
    if ratio == 1:
        written = load_file(target)
        assert all(torch.equal(written[name], value) for name, value in load_file(source).items())


def test_one_rank_is_as_near_as_it_can_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "a.safetensors", drawn({"seed": 1, "modules": [["lora_unet_a", [2, 9], [8, 2], 1.0]]}))
    two = write(tmp_path / "b.safetensors", drawn({"seed": 2, "modules": [["lora_unet_a", [3, 9], [8, 3], 6.0]]}))
    target = tmp_path / "out.safetensors"
    assert run(merge_lora, target, [one, two], [0.7, 0.4]) == 0
    total = 0.7 * effect(one, "lora_unet_a") + 0.4 * effect(two, "lora_unet_a")
    left, values, right = torch.linalg.svd(total)
    best = left[:, :3] @ torch.diag(values[:3]) @ right[:3]
    assert open_network(target).rank("lora_unet_a") == 3 and close(effect(target, "lora_unet_a"), best, 1e-4)
    kept = float(values[:3].norm() / values.norm())
    assert f"holds {kept:.1%} of the sum" in capsys.readouterr().out
    # merged with itself nothing is lost, and nothing is said
    assert run(merge_lora, target, [one, one], [0.25, 0.75], "--overwrite") == 0
    assert close(effect(target, "lora_unet_a"), effect(one, "lora_unet_a"), 1e-5)
    assert "Frobenius" not in capsys.readouterr().out


def test_a_tucker_core_goes_into_the_factors(tmp_path: Path) -> None:
    plain = write(
        tmp_path / "a.safetensors", drawn({"seed": 1, "modules": [["lora_unet_a", [2, 4, 3, 3], [5, 2, 1, 1], 1.0]]})
    )
    core = drawn({"seed": 2, "modules": [["lora_unet_a", [3, 4, 1, 1], [5, 3, 1, 1], 1.0]]})
    tucker = write(tmp_path / "b.safetensors", {**core, "lora_unet_a.lora_mid.weight": torch.randn(3, 3, 3, 3)})
    target = tmp_path / "out.safetensors"
    for more in (["--concat"], ["--legacy", "--concat"], []):
        ratios = [1.0, 1.0] if "--legacy" in more else [0.5, -2.0]
        assert run(merge_lora, target, [tucker, plain], ratios, "--overwrite", *more) == 0
        assert open_network(target).shapes("lora_unet_a")["lora_down.weight"][1:] == (4, 3, 3)
        total = ratios[0] * effect(tucker, "lora_unet_a") + ratios[1] * effect(plain, "lora_unet_a")
        if more == ["--concat"]:
            assert close(effect(target, "lora_unet_a"), total, 1e-6)


def test_the_order_of_the_ranks_is_random_but_known(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", drawn({"seed": 1, "modules": [["lora_unet_a", [16, 9], [8, 16], 1.0]]}))
    out = {}
    for name, more in (("plain", []), ("one", ["--shuffle"]), ("same", ["--shuffle"]), ("two", ["--seed", "1"])):
        target = tmp_path / f"{name}.safetensors"
        more = ["--shuffle", *more] if name == "two" else more
        assert run(merge_lora, target, [source], [1.0], *more) == 0
        out[name] = load_file(target)["lora_unet_a.lora_down.weight"]
        assert close(effect(target, "lora_unet_a"), effect(source, "lora_unet_a"), 1e-6)
    assert torch.equal(out["one"], out["same"])
    assert not torch.equal(out["one"], out["plain"]) and not torch.equal(out["one"], out["two"])
    assert torch.equal(out["one"].sort(dim=0).values, out["plain"].sort(dim=0).values)


def test_notes_and_hashes(tmp_path: Path) -> None:
    one, two = files(tmp_path, VECTORS["merge_lora"][2]["models"])
    target = tmp_path / "my style.safetensors"
    assert run(merge_lora, target, [one, two], [1, 1], "--concat", "--save_precision", "fp16") == 0
    with safe_open(target, "pt") as file:
        notes = file.metadata()
    tensors = load_file(target)
    assert all(value.dtype == torch.float16 for value in tensors.values())
    expected = {"ss_base_model_version": "sd_v1", "ss_v2": "False", "ss_network_module": "networks.lora"}
    assert expected.items() <= notes.items()
    assert (notes["ss_network_dim"], notes["ss_network_alpha"]) == ("6", "Dynamic")
    ss_notes = {key: value for key, value in notes.items() if key.startswith("ss_")}
    assert network_hashes(tensors, ss_notes) == (notes["sshs_model_hash"], notes["sshs_legacy_hash"])
    assert notes["modelspec.merged_from"] == "0, 1" and notes["modelspec.title"] == "my style"
    assert notes["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert run(merge_lora, target, [one, two], [1, 1], "--overwrite", "--concat", "--no_metadata") == 0
    with safe_open(target, "pt") as file:
        assert not any(key.startswith("modelspec.") for key in file.metadata())
        assert file.metadata()["ss_network_dim"] == "6"


def test_rounded_once_and_never_to_infinity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = files(tmp_path, VECTORS["merge_lora"][0]["models"])[0]
    exact, half = tmp_path / "exact.safetensors", tmp_path / "half.pt"
    assert run(merge_lora, exact, [source], [0.3]) == 0
    assert run(merge_lora, half, [source], [0.3], "--precision", "bf16", "--save_precision", "float") == 0
    written = torch.load(half, weights_only=True)
    for name, value in load_file(exact).items():
        assert written[name].dtype == torch.float32 and torch.equal(written[name], value.bfloat16().float())
    target = tmp_path / "large.safetensors"
    assert run(merge_lora, target, [source], [1e12], "--save_precision", "fp16") == 2
    assert "too large for its number format" in capsys.readouterr().err and not target.exists()


def test_sentences_for_what_cannot_be_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = files(tmp_path, VECTORS["merge_lora"][2]["models"])
    xl = write(tmp_path / "xl.safetensors", load_file(one), {"ss_base_model_version": "sdxl_base_v1-0"})
    loha = write(
        tmp_path / "loha.safetensors",
        {f"lora_unet_a.hada_w{n}": torch.ones(2, 2) for n in ("1_a", "1_b", "2_a", "2_b")},
    )
    wide = write(tmp_path / "wide.safetensors", drawn({"seed": 1, "modules": [["lora_unet_a", [2, 7], [4, 2], 1.0]]}))
    bad = write(tmp_path / "bad.safetensors", {name: value * float("nan") for name, value in load_file(one).items()})
    target = tmp_path / "out.safetensors"
    for models, ratios, more, text in (
        ([one, two], [1, 1], ["--legacy"], "has the ranks 2 and 4"),
        ([one, xl], [1, 1], [], "made for Stable Diffusion 1, but"),
        ([loha], [1], [], "is no plain LoRA: lora_unet_a is loha"),
        ([one, wide], [1, 1], [], "changes a layer of another size"),
        ([bad], [1], [], "not finite"),
        ([one, two], [1], [], "1 ratios for 2 networks"),
        ([one], ["nan"], [], "must be a list of numbers"),
        ([one], [1], ["--lbws", "1,2,3"], "a list of 3 numbers"),
        ([one], [1], ["--lbws", "1", "2"], "2 lbws for 1 networks"),
        ([tmp_path / "none.safetensors"], [1], [], "no file"),
    ):
        assert run(merge_lora, target, models, ratios, *more) == 2
        said = capsys.readouterr().err
        assert text in said and said.count("\n") == 1, said
        assert not target.exists()
    assert merge_lora.main(["--save_to", str(target)]) == 2 and "models is missing" in capsys.readouterr().err
    assert run(merge_lora, tmp_path / "out.txt", [one], [1]) == 2
    target.touch()
    assert run(merge_lora, target, [one], [1]) == 2 and target.stat().st_size == 0
    assert "are there already" in capsys.readouterr().err


def test_the_other_scripts_do_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = files(tmp_path, VECTORS["merge_lora"][0]["models"])
    out = []
    for script in (merge_lora, merge_lora_old, sdxl_merge_lora):
        target = tmp_path / "out.safetensors"
        assert run(script, target, models, [0.5, 0.5], "--overwrite") == 0
        out.append(load_file(target))
    assert all(torch.equal(out[0][name], other[name]) for other in out[1:] for name in out[0])
    assert "sdxl_merge_lora.py was given, but" in capsys.readouterr().out
    # written over one of its own inputs
    assert run(merge_lora, models[0], models, [0.5, 0.5], "--overwrite") == 0
    assert all(torch.equal(value, out[0][name]) for name, value in load_file(models[0]).items())


def test_whole_differences_are_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def locon(name: str, seed: int, size: int = 4) -> Path:
        torch.manual_seed(seed)
        norm = {"lora_unet_n.w_norm": torch.randn(size), "lora_unet_n.b_norm": torch.randn(size)}
        tensors = drawn({"seed": seed, "modules": [["lora_unet_a", [2, 9], [8, 2], 1.0]]})
        return write(tmp_path / name, tensors | norm, {"ss_network_module": "lycoris.kohya"})

    one, two, target = locon("a.safetensors", 1), locon("b.safetensors", 2), tmp_path / "out.safetensors"
    assert run(merge_lora, target, [one, two], [0.5, -2.0], "--concat") == 0
    first, second, found = (load_file(path) for path in (one, two, target))
    for part in ("lora_unet_n.w_norm", "lora_unet_n.b_norm"):
        assert torch.allclose(found[part], 0.5 * first[part] - 2 * second[part])
    assert open_network(target).metadata["ss_network_module"] == "lycoris.kohya"
    assert run(merge_lora, target, [one, locon("c.safetensors", 3, 5)], [1, 1], "--overwrite") == 2
    assert "another size" in capsys.readouterr().err
    other = write(tmp_path / "d.safetensors", {"lora_unet_n.diff": torch.zeros(4)})
    assert run(merge_lora, target, [one, other], [1, 1], "--overwrite") == 2
    assert "lora_unet_n is norm in" in capsys.readouterr().err
    parts = drawn({"seed": 1, "modules": [["lora_unet_a", [2, 9], [8, 2], 1.0]]})
    biased = write(tmp_path / "e.safetensors", {**parts, "lora_unet_a.diff_b": torch.ones(8)})
    assert run(merge_lora, target, [biased], [1], "--overwrite") == 2
    assert "a change of a bias, too" in capsys.readouterr().err


@pytest.mark.parametrize("case", VECTORS["merge_to_model"])
def test_layers_of_a_model_get_the_known_numbers(case: dict[str, Any]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(case["model"]["seed"])
        weights = {name: torch.randn(*shape) for name, shape in case["model"]["weights"]}
    dtype = getattr(torch, case["dtype"])
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    for name, weight in weights.items():
        part, _, layer = name.removesuffix(".weight").partition(".")
        module = f"lora_{part}_{layer.replace('.', '_')}"
        new = weight.to(dtype).float()
        for recipe, ratio in zip(case["loras"], case["ratios"]):
            tensors = {key.partition(".")[2]: value for key, value in drawn(recipe).items() if key.startswith(module)}
            new, _ = changed(tensors, new, None, ratio)
        known = case["weights"][f"{layer}.weight"]
        if "data" in known:
            assert close(new.flatten(), torch.tensor(known["data"]), tolerance), name
        else:
            ends = torch.cat([new.flatten()[:8], new.flatten()[-8:]])
            assert close(ends, torch.tensor(known["first8"] + known["last8"]), tolerance), name
            assert float(new.double().square().sum()) == pytest.approx(known["sumsq"], rel=tolerance)


# ---- by singular values


@pytest.mark.parametrize("case", VECTORS["svd_merge"])
def test_by_svd(case: dict[str, Any], tmp_path: Path) -> None:
    models, target = files(tmp_path, case["models"]), tmp_path / "out.safetensors"
    ranks = ["--new_rank", str(case["new_rank"]), "--new_conv_rank", str(case["new_conv_rank"])]
    assert run(svd_merge_lora, target, models, case["ratios"], *ranks) == 0
    file = open_network(target)
    assert case["metadata"].items() <= file.metadata.items()
    assert set(file) == set(case["modules"])
    for module, known in case["modules"].items():
        best = torch.tensor(known["effect"], dtype=torch.float64)
        assert close(effect(target, module).flatten(), best, 1e-4), module
        assert file.alpha(module) == file.rank(module)
    before = {module: file.tensors(module) for module in file}
    assert run(svd_merge_lora, tmp_path / "old.safetensors", models, case["ratios"], *ranks, "--legacy") == 0
    old = open_network(tmp_path / "old.safetensors")
    for module, known in case["modules"].items():
        assert (old.rank(module), old.alpha(module)) == (known["rank"], known["alpha"])
        if known["singular_values"][known["rank"] - 1] > 1e-3:
            cut = [product.flatten() for product in with_all_signs(before[module], known["rank"])]
            published = torch.tensor(known["clamped"], dtype=torch.float64)
            # which of them it is depends on the signs that LAPACK gives the singular vectors
            assert any(close(one, published, 1e-4) for one in cut), module
            assert any(close(one, effect(old.path, module).flatten(), 1e-4) for one in cut), module


def with_all_signs(tensors: dict[str, Tensor], rank: int) -> list[Tensor]:
    """What is left of a product when large values are cut off, for all signs of the singular vectors."""
    up, down = tensors["lora_up.weight"].double().flatten(1), tensors["lora_down.weight"].double().flatten(1)
    found = []
    for signs in itertools.product((1.0, -1.0), repeat=rank):
        turned = torch.tensor(signs, dtype=torch.float64)
        one, other = up[:, :rank] * turned, down[:rank] * turned[:, None]
        limit = float(torch.quantile(torch.cat([one.flatten(), other.flatten()]), 0.99))
        found.append(one.clamp(-limit, limit) @ other.clamp(-limit, limit))
    return found


def test_strengths_by_block() -> None:
    known = VECTORS["block_weights"]
    assert {module: block_weights.place_of(module) for module in known["places"]} == known["places"]
    for length, targets in known["targets"].items():
        assert list(block_weights.TARGETS[int(length)]) == targets
        weights = block_weights.parse(json.dumps(list(range(2, 2 + int(length)))))
        assert [weights[place] for place in targets] == list(range(2, 2 + int(length)))
        assert all(weights[place] == 1 for place in range(26) if place not in targets)


@pytest.mark.parametrize("case", VECTORS["block_weights"]["used"])
def test_svd_with_strengths_by_block(case: dict[str, Any], tmp_path: Path) -> None:
    source, target = write(tmp_path / "a.safetensors", drawn(case["model"])), tmp_path / "out.safetensors"
    more = ["--lbws", json.dumps(case["lbw"]), "--new_rank", str(case["new_rank"])]
    assert run(svd_merge_lora, target, [source], [case["ratio"]], *more) == 0
    for module, weight in case["weights"].items():
        found = effect(target, module)
        assert close(found, effect(source, module) * case["ratio"] * weight, 1e-5)
        values = torch.linalg.svdvals(found)[:2]
        assert torch.allclose(values, torch.tensor(case["values"][module][:2], dtype=torch.float64), atol=1e-5)


def test_other_kinds_become_a_lora(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    conv, line = "lora_unet_down_blocks_0_resnets_0_conv1", "lora_unet_down_blocks_0_attentions_0_proj_in"
    loha = write(
        tmp_path / "loha.safetensors",
        {
            **{f"{conv}.hada_w{n}_a": random(8, 2) for n in "12"},
            **{f"{conv}.hada_w{n}_b": random(2, 36) for n in "12"},
            f"{conv}.alpha": torch.tensor(1.0),
            **{f"{line}.hada_w{n}_a": random(6, 2) for n in "12"},
            **{f"{line}.hada_w{n}_b": random(2, 4) for n in "12"},
        },
    )
    plain = write(tmp_path / "b.safetensors", drawn({"seed": 2, "modules": [[conv, [3, 4, 3, 3], [8, 3, 1, 1], 6.0]]}))
    target = tmp_path / "out.safetensors"
    assert run(svd_merge_lora, target, [loha, plain], [0.5, 2.0], "--new_rank", "8", "--exact") == 0
    tensors = load_file(loha)
    first = tensors[f"{conv}.hada_w1_a"].double() @ tensors[f"{conv}.hada_w1_b"].double()
    second = tensors[f"{conv}.hada_w2_a"].double() @ tensors[f"{conv}.hada_w2_b"].double()
    total = 0.5 * (first * second) / 2 + 2 * effect(plain, conv)
    assert close(effect(target, conv), total, 1e-4)
    shapes = open_network(target).shapes(conv), open_network(target).shapes(line)
    assert shapes[0]["lora_down.weight"] == (8, 4, 3, 3) and shapes[0]["lora_up.weight"] == (8, 8, 1, 1)
    assert shapes[1]["lora_down.weight"] == (4, 4, 1, 1)
    assert kernel_of("lora_unet_x_attn1_to_q", {"hada_w1_a": (6, 2)}, 36, "sd1") is None


def test_svd_refuses_what_depends_on_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dora = drawn({"seed": 1, "modules": [["lora_unet_a", [2, 7], [4, 2], 1.0]]}) | {
        "lora_unet_a.dora_scale": torch.ones(4, 1)
    }
    ia3 = {"lora_unet_a.weight": torch.ones(4), "lora_unet_a.on_input": torch.tensor(False)}
    for tensors, text in ((dora, "decomposed (DoRA)"), (ia3, "lora_unet_a is ia3")):
        source = write(tmp_path / "a.safetensors", tensors)
        assert run(svd_merge_lora, tmp_path / "out.safetensors", [source], [1.0]) == 2
        assert text in capsys.readouterr().err
