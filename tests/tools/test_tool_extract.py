"""LoRA files out of two models, and out of a DyLoRA file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from extract_kit import effect, from_recipe, noise, read, tuned_folder
from safetensors.torch import load_file, save_file
from torch import Tensor

from sd_scripts.models.modules import open_model
from sd_scripts.networks import extract_lora_from_dylora, extract_lora_from_models
from sd_scripts.networks.changes import changed
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools_extract import ExtractLoraOptions
from sd_scripts.tools.lora.extract import clamped, factored, model_kind
from sd_scripts.tools.lora.extract_dylora import split_ranks
from sd_scripts.tools.lora.extract_models import Loading, Pair
from sd_scripts.tools.lora.svd import Factors, decompose

CASES: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "data" / "extract.json").read_text(encoding="utf-8")
)
KEYS = {
    "te.attn.q_proj.weight": "lora_te_attn_q_proj",
    "unet.down.proj_in.weight": "lora_unet_down_proj_in",
    "unet.down.fc.weight": "lora_unet_down_fc",
    "unet.res.conv1.weight": "lora_unet_res_conv1",
}
CPU = torch.device("cpu")
LOADING = Loading(None, CPU, CPU, CPU)


def chosen(**values: Any) -> ExtractLoraOptions:
    return ExtractLoraOptions(model_org="", model_tuned="", save_to="", **values)


@pytest.fixture(scope="module")
def tuned(shallow_sd1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shallow model with a change in every weight, small ones in the text encoder."""
    small, large = noise(0.002), noise(0.1, seed=1)
    folder = tmp_path_factory.mktemp("models") / "tuned"
    return tuned_folder(shallow_sd1, folder, lambda name, value: (small if "text" in name else large)(name, value))


def extract(original: Path, tuned: Path, target: Path, *more: object) -> int:
    arguments = ["--model_org", original, "--model_tuned", tuned, "--save_to", target, *more]
    return extract_lora_from_models.main([str(item) for item in arguments])


def differences(original: Path, tuned: Path, names: list[str]) -> dict[str, Tensor]:
    with open_model(original) as one, open_model(tuned) as other:
        return {name: other.weight(name).double() - one.weight(name).double() for name in names}


@pytest.mark.parametrize("case", CASES["extract"], ids=lambda case: f"{case['dim']} {case['conv_dim']}")
def test_ranks_alphas_and_products_as_known(case: dict[str, Any]) -> None:
    from_recipe(case["original"])  # draws of the same stream come first
    changes = from_recipe(case["tuned_minus_original"])
    options = chosen(dim=case["dim"], conv_dim=case["conv_dim"], clamp_quantile=1.0, legacy=case["dim"] == 8)
    found = {KEYS[name]: factored(change, options) for name, change in changes.items()}
    for name, known in case["modules"].items():
        module = found[name]
        assert (module["lora_down.weight"].shape[0], float(module["alpha"])) == (known["rank"], known["alpha"])
        product, wanted = effect(module), known["unclamped_product"]
        if options.legacy:
            continue  # cut by the signs of the decomposition
        if "data" in wanted:
            assert torch.allclose(product.flatten(), torch.tensor(wanted["data"]).double(), rtol=1e-4, atol=2e-6)
        else:
            assert float(product.square().sum()) == pytest.approx(wanted["sumsq"], rel=1e-4)
            assert product.flatten()[:8].tolist() == pytest.approx(wanted["first8"], rel=1e-3, abs=2e-6)


def test_convolutions_go_up_to_their_full_rank() -> None:
    change = torch.randn(8, 2, 3, 3)
    module = factored(change, chosen(conv_dim=99, clamp_quantile=1.0))
    assert module["lora_down.weight"].shape == (8, 2, 3, 3) and module["lora_up.weight"].shape == (8, 8, 1, 1)
    assert torch.allclose(effect(module).view(change.shape), change.double(), atol=1e-5)
    before = factored(change, chosen(conv_dim=99, legacy=True))
    assert before["lora_down.weight"].shape[0] == 2


def test_values_are_cut_off_whatever_their_sign() -> None:
    factors = decompose(torch.randn(60, 40), 12)
    turned = Factors(-factors.up, -factors.down, factors.values)
    for quantile in (0.5, 0.9, 0.99):
        cut = clamped(factors, quantile)
        assert torch.equal(cut.up, -clamped(turned, quantile).up)
        values = torch.cat([factors.up.flatten(), factors.down.flatten()])
        limit = float(torch.cat([cut.up.flatten(), cut.down.flatten()]).abs().max())
        assert float((values.abs() <= limit).float().mean()) == pytest.approx(2 * quantile - 1, abs=2 / len(values))
        before = clamped(factors, quantile, legacy=True)
        seen = float(torch.quantile(values, quantile))
        assert torch.allclose(before.up, factors.up.clamp(-abs(seen), abs(seen))) or seen < 0
    assert clamped(factors, 1.0) is factors


def test_every_module_is_the_best_of_its_rank(shallow_sd1: Path, tuned: Path, tmp_path: Path) -> None:
    target = tmp_path / "lora.safetensors"
    more = ["--dim", 5, "--conv_dim", 3, "--clamp_quantile", 1, "--min_diff", 0.001]
    assert extract(shallow_sd1, tuned, target, *more, "--exact") == 0
    modules, metadata = read(target)
    with open_model(shallow_sd1) as model:
        assert set(modules) == set(model.targets(conv=True))
    for name, change in differences(shallow_sd1, tuned, list(modules)).items():
        matrix = change.flatten(1)
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        rank = 3 if change.dim() == 4 and change.shape[2] == 3 else 5
        wanted = (left[:, :rank] * values[:rank]) @ right[:rank]
        assert float((effect(modules[name]) - wanted).norm()) <= 1e-4 * float(wanted.norm()), name
        assert modules[name]["lora_down.weight"].shape == (rank, *change.shape[1:])
        assert modules[name]["lora_up.weight"].shape == (change.shape[0], rank, *[1] * (change.dim() - 2))
        assert {value.dtype for value in modules[name].values()} == {torch.float32}
    noted = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    known = {**CASES["extract"][0]["metadata"], "ss_network_alpha": "5.0", "ss_network_dim": "5"}
    assert noted == {**known, "ss_network_args": '{"conv_dim": "3", "conv_alpha": "3.0"}'}
    assert {"sshs_model_hash", "sshs_legacy_hash", "modelspec.title"} <= set(metadata)


def test_full_rank_brings_the_tuned_model_back(shallow_sd1: Path, tuned: Path, tmp_path: Path) -> None:
    target = tmp_path / "lora.safetensors"
    more = ["--dim", 9999, "--conv_dim", 9999, "--clamp_quantile", 1, "--min_diff", 0, "--no_metadata"]
    assert extract(shallow_sd1, tuned, target, *more) == 0
    modules, metadata = read(target)
    assert not any(key.startswith("modelspec") for key in metadata)
    with open_model(shallow_sd1) as one, open_model(tuned) as other:
        for name in one.targets(conv=True):
            weight, _ = changed(modules[name], one.weight(name).clone(), None, 1.0)
            assert torch.allclose(weight, other.weight(name), atol=2e-6), name


def test_a_text_encoder_that_is_the_same_is_left_out(
    shallow_sd1: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract(shallow_sd1, tuned, tmp_path / "unet.safetensors", "--dim", 1) == 0
    assert "text encoder is left out: nothing in it differs by more than 0.01" in capsys.readouterr().out
    modules, metadata = read(tmp_path / "unet.safetensors")
    assert all(name.startswith("lora_unet_") for name in modules)
    assert not any("resnets" in name for name in modules) and metadata["ss_network_args"] == "{}"
    half = ["--dim", 1, "--min_diff", 0.001, "--save_precision", "fp16", "--load_precision", "fp16"]
    assert extract(shallow_sd1, tuned, tmp_path / "all.ckpt", *half, "--v2") == 0
    found = torch.load(tmp_path / "all.ckpt", weights_only=True)
    assert {value.dtype for value in found.values()} == {torch.float16}
    assert any(name.startswith("lora_te_text_model_") for name in found)
    assert "note: v2 was given, but" in capsys.readouterr().out


@pytest.mark.parametrize("version", ["sd1", "sd2"])
def test_a_file_is_read_as_the_folder(
    version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    folder, file = (request.getfixturevalue(f"tiny_{version}{ending}") for ending in ("", "_file"))
    for pair in ((folder, file), (file, folder)):
        assert extract(*pair, tmp_path / "lora.safetensors", "--conv_dim", 1) == 2
        assert "Nothing differs between" in capsys.readouterr().err and not list(tmp_path.iterdir())
    if version == "sd2":
        kinds = []
        for path in (folder, file):
            with open_model(path) as one, open_model(path) as other:
                kinds.append(model_kind(Pair(one, other, LOADING), False))
        # the folder says what the model predicts, the file does not
        assert [kind["v_param"] for kind in kinds] == [False, True]


def test_both_text_encoders_and_the_blocks_of_sdxl(shallow_sdxl: Path, tmp_path: Path) -> None:
    wider = tuned_folder(shallow_sdxl, tmp_path / "tuned", noise(0.1, but="unet"))
    assert extract(shallow_sdxl, wider, tmp_path / "lora.safetensors", "--dim", 1, "--sdxl") == 0
    modules, metadata = read(tmp_path / "lora.safetensors")
    assert {name.split("_")[1] for name in modules} == {"te1", "te2", "unet"}
    assert any(name.startswith("lora_unet_input_blocks_") for name in modules)
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    for name, module in modules.items():
        # a layer without a change gets a module that can learn, and does nothing
        assert bool(module["lora_up.weight"].any()) == (not name.startswith("lora_unet"))
        assert bool(module["lora_down.weight"].any())


def test_what_cannot_be_extracted(
    shallow_sd1: Path, tuned: Path, shallow_sdxl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "lora.safetensors"
    target.touch()

    def refused(*arguments: Any) -> str:
        assert extract(*arguments) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1 and "Traceback" not in text
        return text

    assert "there already" in refused(shallow_sd1, tuned, target)
    target.unlink()
    assert "no.safetensors" in refused(shallow_sd1, tmp_path / "no.safetensors", target)
    assert "XL, but" in refused(shallow_sdxl, tuned, target)
    assert "must end in" in refused(shallow_sd1, tuned, tmp_path / "lora.txt")
    assert "clamp_quantile" in refused(shallow_sd1, tuned, target, "--clamp_quantile", 0.2)
    assert "load_tuned_model_to is 'no such'" in refused(shallow_sd1, tuned, target, "--load_tuned_model_to", "no such")
    place = "unet/mid_block.attentions.0.proj_in.weight"
    broken = tuned_folder(tuned, tmp_path / "broken", lambda name, value: value / 0 if name == place else value)
    text = refused(shallow_sd1, broken, target)
    assert "lora_unet_mid_block_attentions_0_proj_in holds values that are not finite" in text and "broken" in text
    assert not target.exists()


# ---- DyLoRA


def dylora_file(path: Path, rank: int, **metadata: str) -> Path:
    torch.manual_seed(9)
    tensors = {
        "lora_unet_a.lora_down.weight": torch.randn(rank, 5),
        "lora_unet_a.lora_up.weight": torch.randn(4, rank),
        "lora_unet_a.alpha": torch.tensor(1.0),
        "lora_unet_c.lora_down.weight": torch.randn(rank, 2, 3, 3),
        "lora_unet_c.lora_up.weight": torch.randn(3, rank, 1, 1),
        "lora_unet_c.alpha": torch.tensor(1.0),
    }
    save_file(tensors, path, metadata)
    return path


def split(model: Path, target: Path, *more: object) -> int:
    arguments = ["--model", model, "--save_to", target, *more]
    return extract_lora_from_dylora.main([str(item) for item in arguments])


@pytest.mark.parametrize("case", CASES["dylora"], ids=lambda case: f"{case['max_rank']} by {case['unit']}")
def test_first_ranks_of_a_dylora(case: dict[str, Any], tmp_path: Path) -> None:
    model = dylora_file(tmp_path / "dylora.safetensors", case["max_rank"], ss_training_comment="mine")
    assert split(model, tmp_path / case["save_to"], "--unit", case["unit"]) == 0
    whole = load_file(model)
    names = [*case["file_names"], f"out-{case['max_rank']:04d}.safetensors"]
    assert sorted(path.name for path in tmp_path.glob("out*")) == sorted(names)
    for rank, name in zip([*case["ranks"], case["max_rank"]], names, strict=True):
        modules, metadata = read(tmp_path / name)
        assert torch.equal(modules["lora_unet_c"]["lora_down.weight"], whole["lora_unet_c.lora_down.weight"][:rank])
        assert modules["lora_unet_c"]["lora_up.weight"].shape == (3, rank, 1, 1)
        assert float(modules["lora_unet_a"]["alpha"]) == 1.0
        assert metadata["ss_network_dim"] == str(rank)
        assert metadata["ss_training_comment"] == f"split from DyLoRA, rank {case['max_rank']} to {rank}; mine"
        assert len(metadata["sshs_model_hash"]) == 64
    for name, known in zip(case["file_names"], case["products_linear"]):
        module = read(tmp_path / name)[0]["lora_unet_a"]
        product = module["lora_up.weight"] @ module["lora_down.weight"]
        assert torch.allclose(product.flatten(), torch.tensor(known["data"]), atol=1e-5)


def test_ranks_of_a_split() -> None:
    assert split_ranks(8, 2) == [2, 4, 6, 8] and split_ranks(8, 2, legacy=True) == [2, 4, 6]
    assert split_ranks(8, 3) == [3, 6, 8] and split_ranks(4, 4) == [4]
    for whole, unit, legacy in ((4, 5, False), (4, 4, True)):
        with pytest.raises(UserError, match=str(unit)):
            split_ranks(whole, unit, legacy)


def test_dylora_files_that_cannot_be_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noted = dylora_file(tmp_path / "noted.safetensors", 4, ss_network_args='{"unit": "2"}')
    assert split(noted, tmp_path / "a.safetensors") == 0
    assert {path.name for path in tmp_path.glob("a-*")} == {"a-0002.safetensors", "a-0004.safetensors"}
    assert split(noted, tmp_path / "a.safetensors") == 2
    assert "there already" in capsys.readouterr().err
    plain = dylora_file(tmp_path / "plain.safetensors", 4)
    assert split(plain, tmp_path / "b.safetensors") == 2
    assert "unit is missing" in capsys.readouterr().err
    save_file({"lora_unet_a.diff": torch.ones(2, 2)}, tmp_path / "full.safetensors")
    assert split(tmp_path / "full.safetensors", tmp_path / "b.safetensors", "--unit", 1) == 2
    assert "is no DyLoRA: lora_unet_a has diff" in capsys.readouterr().err
    assert not list(tmp_path.glob("b*"))
