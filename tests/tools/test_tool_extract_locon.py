"""LyCORIS files out of two models, read by LyCORIS itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from extract_kit import noise, read, tuned_folder
from torch import Tensor, nn

from sd_scripts.models.modules import Place, open_model
from sd_scripts.tools import extract_locon, lycoris_locon_extract
from sd_scripts.tools.lora.extract_locon import Amount, sparse, target_of, tucker


@pytest.fixture(scope="module")
def tuned(shallow_sd1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shallow model with a change in every weight and bias."""
    return tuned_folder(shallow_sd1, tmp_path_factory.mktemp("models") / "tuned", noise(0.05))


def extract(original: Path, tuned: Path, target: Path | str, *more: object) -> int:
    return lycoris_locon_extract.main([str(item) for item in (original, tuned, target, *more)])


def loaded(
    place: Place, weight: Tensor, bias: Tensor | None, tensors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """The layer's weight and bias after LyCORIS has loaded the module and merged it."""
    from lycoris.modules import get_module, make_module

    layer: nn.Module
    if place.kind == "linear":
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    elif place.kind == "conv":
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], bias=bias is not None)
    else:
        layer = nn.LayerNorm(len(weight))
    layer.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    kind, parameters = get_module({f"m.{part}": value.float() for part, value in tensors.items()}, "m")
    module = make_module(kind, parameters, "m", layer)
    module.merge_to(1.0)
    return layer.weight.detach(), None if bias is None else layer.bias.detach()  # type: ignore[union-attr,return-value]


def best(matrix: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(matrix.flatten(1).double(), full_matrices=False)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).view(matrix.shape)


def test_whole_changes_bring_the_tuned_model_back(
    shallow_sd1: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract(shallow_sd1, tuned, tmp_path / "full.safetensors", "--mode", "full") == 0
    assert "note: embeddings of the text encoder differ" in capsys.readouterr().out
    modules, metadata = read(tmp_path / "full.safetensors")
    assert json.loads(metadata["ss_network_args"]) == {"algo": "full"}
    assert metadata["ss_network_module"] == "lycoris.kohya"
    with open_model(shallow_sd1) as one, open_model(tuned) as other:
        assert set(modules) == set(one.places)
        for name, module in modules.items():
            place = one.places[name]
            assert set(module) <= ({"w_norm", "b_norm"} if place.kind == "norm" else {"diff", "diff_b"})
            bias, wanted = one.bias(name), other.bias(name)
            weight, made = loaded(place, one.weight(name), bias, module)
            assert torch.allclose(weight, other.weight(name), atol=2e-4), name
            assert (made is None) == (wanted is None)
            assert made is None or wanted is None or torch.allclose(made, wanted, atol=2e-4), name


def test_fixed_ranks_with_and_without_a_core(shallow_sd1: Path, tuned: Path, tmp_path: Path) -> None:
    ranks = ["--linear_dim", 4, "--conv_dim", 3, "--safetensors", "--exact"]
    assert extract(shallow_sd1, tuned, tmp_path / "core", *ranks) == 0
    assert extract(shallow_sd1, tuned, tmp_path / "plain", *ranks, "--disable_cp") == 0
    with_core, metadata = read(tmp_path / "core.safetensors")
    without, _ = read(tmp_path / "plain.safetensors")
    assert json.loads(metadata["ss_network_args"]) == {"algo": "locon"}
    assert any("lora_mid.weight" in module for module in with_core.values())
    with open_model(shallow_sd1) as one, open_model(tuned) as other:
        for name, module in without.items():
            place, base = one.places[name], one.weight(name)
            change = other.weight(name) - base
            rank = 3 if place.kind == "conv" and place.shape[2] > 1 else 4
            if 2 * rank >= place.shape[0]:
                assert "diff" in module
                continue
            assert {value.dtype for value in module.values()} == {torch.float16}
            wanted, scale = best(change, rank), float(change.norm())
            weight, _ = loaded(place, base, None, module)
            assert float((weight - base - wanted).norm()) < 2e-3 * scale
            core = with_core[name]
            if "lora_mid.weight" not in core:
                assert torch.equal(core["lora_up.weight"], module["lora_up.weight"])
                continue
            assert core["lora_mid.weight"].shape == (rank, rank, 3, 3)
            assert core["lora_down.weight"].shape == (rank, place.shape[1], 1, 1)
            weight, _ = loaded(place, base, None, core)
            # less than without the core, yet no more than the change itself
            lost = float((weight - other.weight(name)).norm())
            assert float((wanted - change).norm()) - 1e-3 * scale <= lost < scale


def test_a_core_is_the_whole_where_the_rank_suffices() -> None:
    torch.manual_seed(0)
    down = torch.einsum("abhw,bi->aihw", torch.randn(3, 3, 3, 3), torch.randn(3, 20))
    core, inner = tucker(down, exact=True)
    assert torch.allclose(torch.einsum("abhw,bi->aihw", core, inner.flatten(1)), down, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "number", "rank"),
    [("threshold", 2.5, 2), ("ratio", 0.4, 3), ("ratio", 0.0, 4), ("quantile", 0.75, 2), ("quantile", 1.0, 3)],
)
def test_how_many_singular_values_each_mode_keeps(mode: str, number: float, rank: int) -> None:
    assert Amount(mode, number).rank(torch.tensor([4.0, 3.0, 2.0, 1.0])) == rank


def dense(module: Mapping[str, Tensor]) -> Tensor:
    """The sparse rest of a module as a matrix."""
    made = torch.zeros(module["bias_size"].tolist())
    made[tuple(module["bias_indices"].long())] = module["bias_values"].float()
    return made


def test_what_the_rank_leaves_out(shallow_sd1: Path, tuned: Path, tmp_path: Path) -> None:
    rest = torch.tensor([[0.1, -5.0, 0.2], [3.0, 0.0, -0.3]])
    found = sparse(rest, 0.5)
    assert torch.allclose(dense(found), torch.tensor([[0.0, -5.0, 0.0], [3.0, 0.0, -0.3]]), atol=1e-3)

    more = ["--linear_threshold", 1.2, "--conv_threshold", 1.5, "--use_sparse_bias", "--sparsity", 0.9]
    assert extract(shallow_sd1, tuned, tmp_path / "a.safetensors", "--mode", "threshold", *more) == 0
    modules, _ = read(tmp_path / "a.safetensors")
    seen = 0
    with open_model(shallow_sd1) as one, open_model(tuned) as other:
        for name, module in modules.items():
            if "bias_size" not in module:
                assert "diff" in module
                continue
            seen += 1
            change = (other.weight(name) - one.weight(name)).flatten(1)
            limit = 1.5 if change.shape != one.places[name].shape and one.places[name].shape[2:] == (3, 3) else 1.2
            kept = int((torch.linalg.svdvals(change) > limit).sum())
            assert module["lora_up.weight"].shape[1] == max(1, min(kept, one.places[name].shape[1]))
            weight, _ = loaded(one.places[name], torch.zeros(one.places[name].shape), None, _factors(module))
            with_rest = weight.flatten(1) + dense(module)
            assert float((with_rest - change).norm()) < float((weight.flatten(1) - change).norm())
    assert seen > 20


def _factors(module: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {part: value for part, value in module.items() if not part.startswith("bias_")}


def test_names_of_the_file() -> None:
    assert target_of("a/b", False) == Path("a/b.pt") and target_of("a/b", True) == Path("a/b.safetensors")
    assert target_of("a/b.pt", True) == Path("a/b.safetensors") and target_of("v1.5", False) == Path("v1.5.pt")
    assert target_of("b.safetensors", False) == Path("b.safetensors")


def test_what_cannot_be_extracted(
    shallow_sd1: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: object) -> str:
        assert extract_locon.main([str(item) for item in arguments]) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1 and "Traceback" not in text
        return text

    target = tmp_path / "a.safetensors"
    assert "Nothing differs" in refused(shallow_sd1, shallow_sd1, target, "--linear_dim", 2)
    assert "mode" in refused(shallow_sd1, tuned, target, "--mode", "halves")
    assert "no such" in refused(shallow_sd1, tmp_path / "no such", target)
    assert not target.exists()
    (tmp_path / "a.pt").touch()
    assert "there already" in refused(shallow_sd1, tuned, tmp_path / "a")
