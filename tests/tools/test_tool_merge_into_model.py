"""Networks merged into models: base + strength * alpha / rank * up x down everywhere, whatever the model's form."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sd_scripts.models.modules import ModelFile, open_model
from sd_scripts.networks import merge_lora, sdxl_merge_lora
from sd_scripts.tools import merge_lycoris

VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
RANK = 2


def make_lora(path: Path, model: ModelFile, seed: int = 0, alpha: float = 1.0, noted: str | None = None) -> Path:
    """A LoRA for every layer that training would take, convolutions too."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name in model.targets(conv=True):
        out, *inner = model.places[name].shape
        point = [1] * (len(inner) - 1)
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, RANK, *point, generator=generator) / 8
        tensors[f"{name}.lora_down.weight"] = torch.randn(RANK, *inner, generator=generator) / 8
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path, {"ss_base_model_version": noted or VERSIONS[model.version]})
    return path


def change(tensors: dict[str, Tensor], name: str) -> Tensor:
    """alpha / rank * up x down in float64, as a matrix."""
    up = tensors[f"{name}.lora_up.weight"].double().flatten(1)
    down = tensors[f"{name}.lora_down.weight"].double().flatten(1)
    return up @ down * (float(tensors[f"{name}.alpha"]) / len(down))


def expected(model: ModelFile, loras: list[tuple[Path, float]]) -> dict[str, Tensor]:
    """Every stored tensor of a single file with the LoRAs in it, in float64."""
    stored = {key: value.clone() for key, value in load_file(model.path).items()}
    result = {key: value.double() if value.is_floating_point() else value for key, value in stored.items()}
    for path, ratio in loras:
        tensors = load_file(path)
        for name in {key.split(".")[0] for key in tensors}:
            place = model.places[name]
            rows = result[place.weight][slice(*place.rows)] if place.rows else result[place.weight]
            rows += ratio * change(tensors, name).view(rows.shape)
    return result


def merged(target: Path, model: Path, loras: list[tuple[Path, float]], *more: str, script: object = merge_lora) -> int:
    models = [str(path) for path, _ in loras]
    ratios = [str(ratio) for _, ratio in loras]
    arguments = ["--sd_model", str(model), "--save_to", str(target), "--models", *models, "--ratios", *ratios, *more]
    run: Callable[[list[str]], int] = script.main  # type: ignore[attr-defined]
    return run(arguments)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_every_layer_gets_its_share(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(f"tiny_{kind}_file")
    model = open_model(source)
    loras = [
        (make_lora(tmp_path / "a.safetensors", model), 0.7),
        (make_lora(tmp_path / "b.safetensors", model, seed=1, alpha=6.0), -1.3),
    ]
    target = tmp_path / "out.safetensors"
    assert merged(target, source, loras, script=sdxl_merge_lora if kind == "sdxl" else merge_lora) == 0
    found, right = load_file(target), expected(model, loras)
    assert found.keys() == right.keys()
    before = load_file(source)
    touched = {model.places[name].weight for name in model.targets(conv=True)}
    for key, value in found.items():
        if key in touched:
            assert not torch.equal(value, before[key])
            assert torch.allclose(value.double(), right[key], rtol=0, atol=1e-6), key
        else:
            assert torch.equal(value, before[key]), key
    with safe_open(target, "pt") as file:
        notes = file.metadata()
    assert notes["modelspec.merged_from"] == f"{source.stem}, a, b" and notes["modelspec.title"] == "out"
    assert notes["modelspec.architecture"] == {
        "sd1": "stable-diffusion-v1",
        "sd2": "stable-diffusion-v2-512",
        "sdxl": "stable-diffusion-xl-v1-base",
    }[kind]  # fmt: skip


@pytest.mark.parametrize("saving", ["fp16", "bf16"])
def test_rounded_once(saving: str, tiny_sd1_file: Path, tmp_path: Path) -> None:
    lora = make_lora(tmp_path / "a.safetensors", open_model(tiny_sd1_file))
    exact, target = tmp_path / "exact.safetensors", tmp_path / "out.safetensors"
    assert merged(exact, tiny_sd1_file, [(lora, 0.3)]) == 0
    assert merged(target, tiny_sd1_file, [(lora, 0.3)], "--save_precision", saving) == 0
    rounded, dtype = load_file(target), torch.float16 if saving == "fp16" else torch.bfloat16
    for key, value in load_file(exact).items():
        assert torch.equal(rounded[key], value.to(rounded[key].dtype))
        assert rounded[key].dtype == dtype or not key.startswith("model.")
    # 32-bit results that were asked for in 16 bits
    more = ["--precision", saving, "--save_precision", "float", "--overwrite"]
    assert merged(target, tiny_sd1_file, [(lora, 0.3)], *more) == 0
    key = "model.diffusion_model.input_blocks.1.1.proj_in.weight"
    assert torch.equal(load_file(target)[key], load_file(exact)[key].to(dtype).float())


def test_folders_stay_folders_and_torch_files_are_read(tiny_sd2: Path, tiny_sd1_file: Path, tmp_path: Path) -> None:
    model = open_model(tiny_sd2)
    lora = make_lora(tmp_path / "a.safetensors", model)
    target = tmp_path / "out"
    assert merged(target, tiny_sd2, [(lora, 2.0)]) == 0
    old, new, tensors = open_model(tiny_sd2), open_model(target), load_file(lora)
    assert list(old.places) == list(new.places)
    for name in model.targets(conv=True):
        added = new.weight(name).double() - old.weight(name).double()
        assert torch.allclose(added.flatten(1), 2 * change(tensors, name), atol=1e-6), name
    assert (target / "model_index.json").is_file() and (target / "tokenizer").is_dir()
    assert merged(tmp_path / "one.safetensors", tiny_sd2, [(lora, 2.0)]) == 0
    one = open_model(tmp_path / "one.safetensors")
    assert all(torch.equal(one.weight(name).flatten(), new.weight(name).flatten()) for name in model.places)

    whole = load_file(tiny_sd1_file)
    torch.save({"state_dict": whole, "global_step": 7}, tmp_path / "m.ckpt")
    torch.save(load_file(make_lora(tmp_path / "b.safetensors", open_model(tiny_sd1_file))), tmp_path / "b.pt")
    assert merged(tmp_path / "out.ckpt", tmp_path / "m.ckpt", [(tmp_path / "b.pt", 1.0)]) == 0
    content = torch.load(tmp_path / "out.ckpt", weights_only=True)
    right = expected(open_model(tiny_sd1_file), [(tmp_path / "b.safetensors", 1.0)])
    assert content["state_dict"].keys() == whole.keys()
    assert all(torch.allclose(content["state_dict"][key].double(), right[key].double(), atol=1e-6) for key in right)


def test_diffusers_sees_the_same_as_with_the_loras_side_by_side_loaded(tiny_sd1: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    def noise(folder: Path, lora: Path | None) -> Tensor:
        pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)
        if lora is not None:
            pipe.load_lora_weights(str(lora))
        pipe.set_progress_bar_config(disable=True)
        prompt, negative = pipe.encode_prompt("a cat on a table", "cpu", 1, True)
        latents = torch.randn(1, pipe.unet.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            return pipe.unet(latents, 500, encoder_hidden_states=prompt - negative).sample

    model = open_model(tiny_sd1)
    one = make_lora(tmp_path / "a.safetensors", model, alpha=3.0)
    two = make_lora(tmp_path / "b.safetensors", model, seed=1)
    assert merged(tmp_path / "out", tiny_sd1, [(one, 1.0), (two, -0.5)]) == 0
    both = tmp_path / "both.safetensors"
    arguments = ["--models", one, two, "--ratios", 1.0, -0.5, "--concat", "--save_to", both]
    assert merge_lora.main([str(argument) for argument in arguments]) == 0
    plain, loaded, into = noise(tiny_sd1, None), noise(tiny_sd1, both), noise(tmp_path / "out", None)
    effect = float((loaded - plain).norm())
    assert effect > 1e-3 * float(plain.norm())
    assert float((loaded - into).norm()) < 1e-4 * effect


def test_any_kind_counts_alpha_once(tiny_sd1_file: Path, tmp_path: Path) -> None:
    model = open_model(tiny_sd1_file)
    names = [name for name in model.targets() if "attn1_to" in name][:3]
    loha, lokr, full = names
    tensors: dict[str, Tensor] = {}
    shape = model.places[loha].shape
    halves = [(torch.randn(shape[0], 2), torch.randn(2, shape[1])) for _ in range(2)]
    for number, (to_out, to_in) in enumerate(halves, 1):
        tensors |= {f"{loha}.hada_w{number}_a": to_out, f"{loha}.hada_w{number}_b": to_in}
    small = torch.randn(2, 2)
    large = torch.randn(model.places[lokr].shape[0] // 2, 2), torch.randn(2, model.places[lokr].shape[1] // 2)
    tensors |= {f"{lokr}.lokr_w1": small, f"{lokr}.lokr_w2_a": large[0], f"{lokr}.lokr_w2_b": large[1]}
    tensors |= {f"{name}.alpha": torch.tensor(1.0) for name in (loha, lokr)}
    tensors[f"{full}.diff"] = torch.randn(model.places[full].shape)
    norm = next(name for name, place in model.places.items() if place.kind == "norm" and "unet" in name)
    tensors |= {f"{norm}.{part}_norm": torch.randn(model.places[norm].shape) for part in "wb"}
    network, target = tmp_path / "a.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, network)
    assert merge_lycoris.main([str(tiny_sd1_file), str(network), str(target), "--weight", "0.5"]) == 0
    products = [to_out.double() @ to_in.double() for to_out, to_in in halves]
    right = {
        loha: 0.5 * products[0] * products[1] / 2,
        lokr: 0.5 * torch.kron(small.double(), large[0].double() @ large[1].double()) / 2,
        full: 0.5 * tensors[f"{full}.diff"].double(),
        norm: 0.5 * tensors[f"{norm}.w_norm"].double(),
    }
    out = open_model(target)
    for name in model.places:
        added = out.weight(name).double() - model.weight(name).double()
        assert torch.allclose(added, right.get(name, torch.zeros(())).double(), atol=2e-6), name
    bias, before = out.bias(norm), model.bias(norm)
    assert bias is not None and before is not None
    assert torch.allclose(bias - before, 0.5 * tensors[f"{norm}.b_norm"], atol=1e-6)


def test_sdxl_in_the_spelling_of_diffusers(tiny_sdxl_file: Path, tmp_path: Path) -> None:
    from sd_scripts.networks.names import diffusers_name

    model = open_model(tiny_sdxl_file)
    own = make_lora(tmp_path / "own.safetensors", model)
    some = ("to_q", "proj_in", "in_layers_2")
    tensors = {key: value for key, value in load_file(own).items() if key.split(".")[0].endswith(some)}
    tensors = {key: value for key, value in tensors.items() if "unet" in key}
    renamed = {f"{diffusers_name(key.split('.')[0])}.{key.partition('.')[2]}": value for key, value in tensors.items()}
    assert any("lora_unet_down_blocks" in key for key in renamed)
    save_file(renamed, tmp_path / "their.safetensors")
    save_file(tensors, own)
    for name in ("own", "their"):
        source = tmp_path / f"{name}.safetensors"
        assert merged(tmp_path / f"{name}_out.safetensors", tiny_sdxl_file, [(source, 1.0)]) == 0
    one, other = (load_file(tmp_path / f"{name}_out.safetensors") for name in ("own", "their"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_does_not_fit_is_said(tiny_sd1_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = open_model(tiny_sd1_file)
    good = make_lora(tmp_path / "good.safetensors", model)
    tensors = load_file(good)
    first = min(tensors).split(".")[0]

    def variant(name: str, content: dict[str, Tensor], noted: str = "sd_v1") -> Path:
        save_file(content, tmp_path / name, {"ss_base_model_version": noted})
        return tmp_path / name

    other = variant("other.safetensors", {f"lora_unet_none_{key}": value for key, value in tensors.items()})
    wide = variant("wide.safetensors", {**tensors, f"{first}.lora_down.weight": torch.zeros(RANK, 5)})
    up = f"{first}.lora_up.weight"
    bad = variant("bad.safetensors", {**tensors, up: tensors[up] * float("inf")})
    xl = variant("xl.safetensors", tensors, "sdxl_base_v1-0")
    target = tmp_path / "out.safetensors"
    for lora, ratio, more, text in (
        (other, 1.0, [], "has nothing that fits"),
        (wide, 1.0, [], f"{first} makes a change of shape"),
        (bad, 1.0, [], f"{first}.lora_up.weight holds values that are not finite"),
        (xl, 1.0, [], "is made for Stable Diffusion XL, but"),
        (good, 1e9, ["--save_precision", "fp16"], "more than the number format of the result holds"),
    ):
        assert merged(target, tiny_sd1_file, [(lora, ratio)], *more) == 2
        said = capsys.readouterr().err
        assert text in said and said.count("\n") == 1 and not target.exists(), said
        assert not list(tmp_path.glob(".*")), "nothing half is left"
    assert merged(tmp_path / "none" / "x", tiny_sd1_file, [(good, 1.0)]) == 2
    assert merged(target, tmp_path / "none.safetensors", [(good, 1.0)]) == 2
    assert "There is no model at" in capsys.readouterr().err
    numbered = variant("numbered.safetensors", {key.replace("lora_te_", "lora_te1_"): tensors[key] for key in tensors})
    assert merged(target, tiny_sd1_file, [(numbered, 1.0)]) == 0
    assert "no layer" not in capsys.readouterr().out
    some = variant(
        "some.safetensors",
        {
            **tensors,
            "lora_unet_none.lora_up.weight": torch.zeros(2, 2),
            "lora_unet_none.lora_down.weight": torch.zeros(2, 2),
        },
    )
    assert merged(target, tiny_sd1_file, [(some, 1.0)], "--v2", "--concat", "--overwrite") == 0
    said = capsys.readouterr().out
    assert "no layer for 1 modules" in said and "lora_unet_none" in said
    assert "--v2 was given, but" in said and "--concat change nothing" in said
    assert merged(target, tiny_sd1_file, [(good, 1.0)]) == 2 and "are there already" in capsys.readouterr().err


def test_a_damaged_model_is_named_and_an_input_may_be_replaced(
    tiny_sd1_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = make_lora(tmp_path / "a.safetensors", open_model(tiny_sd1_file))
    mine = tmp_path / "mine.safetensors"
    shutil.copyfile(tiny_sd1_file, mine)
    assert merged(mine, mine, [(lora, 1.0)]) == 2
    assert merged(mine, mine, [(lora, 1.0)], "--overwrite") == 0
    right = expected(open_model(tiny_sd1_file), [(lora, 1.0)])
    assert all(torch.allclose(value.double(), right[key].double(), atol=1e-6) for key, value in load_file(mine).items())
    broken, key = load_file(tiny_sd1_file), "model.diffusion_model.input_blocks.1.1.proj_in.weight"
    broken[key][0, 0] = float("nan")
    save_file(broken, mine)
    capsys.readouterr()
    assert merged(tmp_path / "out.safetensors", mine, [(lora, 1.0)]) == 2
    assert f"{key} is not finite" in capsys.readouterr().err
