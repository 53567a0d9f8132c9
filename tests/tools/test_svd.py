"""Decompositions: as near as the best one, whatever the matrix looks like."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sd_scripts.schema.errors import UserError
from sd_scripts.tools.lora.device import computing_device, in_parallel
from sd_scripts.tools.lora.svd import choose_rank, completed, decompose, decompose_by, decompose_product

VECTORS: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "data" / "rank_choice.json").read_text(encoding="utf-8")
)


def made(rows: int, columns: int, kind: str) -> Tensor:
    """A matrix with a known kind of spectrum; float64."""
    generator = torch.Generator().manual_seed(rows + columns)
    noise = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    if kind == "flat":
        return noise
    if kind == "low rank and noise":
        left = torch.randn(rows, 24, generator=generator, dtype=torch.float64)
        return left @ torch.randn(24, columns, generator=generator, dtype=torch.float64) + noise
    left, values, right = torch.linalg.svd(noise, full_matrices=False)
    steps = torch.arange(len(values), dtype=torch.float64)
    return (left * (1 / (1 + steps) if kind == "slow" else 10 ** (-steps / 20))) @ right


def product(factors: Any) -> Tensor:
    return factors.up.double() @ factors.down.double()


def best_error(matrix: Tensor, rank: int) -> float:
    return float(torch.linalg.vector_norm(torch.linalg.svdvals(matrix)[rank:]))


@pytest.mark.parametrize("kind", ["flat", "low rank and noise", "slow", "steep"])
@pytest.mark.parametrize("shape", [(320, 320), (640, 256), (256, 900)])
def test_random_vectors_find_all_but_two_percent(shape: tuple[int, int], kind: str) -> None:
    matrix = made(*shape, kind)
    for rank in (1, 8, 40):
        factors = decompose(matrix.float(), rank)
        assert factors.up.shape == (shape[0], rank) and factors.down.shape == (rank, shape[1])
        assert float((matrix - product(factors)).norm()) <= 1.02 * best_error(matrix, rank) + 1e-6 * float(
            matrix.norm()
        )
        assert torch.allclose(factors.down @ factors.down.T, torch.eye(rank), atol=1e-5)
        assert torch.allclose(torch.linalg.vector_norm(factors.up, dim=0), factors.values, rtol=1e-4)


@pytest.mark.parametrize("kind", ["flat", "steep"])
@pytest.mark.parametrize("shape", [(200, 150), (150, 260), (9, 5)])
def test_exact_is_the_cut_decomposition(shape: tuple[int, int], kind: str) -> None:
    matrix = made(*shape, kind)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    for rank in (1, 5, 150):
        factors = decompose(matrix.float(), rank, exact=True)
        wanted = (left[:, :rank] * values[:rank]) @ right[:rank]
        assert factors.rank == min(rank, *shape)
        assert float((product(factors) - wanted).norm()) <= 1e-5 * float(wanted.norm())
        assert torch.allclose(factors.values.double(), values[:rank], rtol=1e-4, atol=1e-7 * float(values[0]))


def test_the_rank_is_chosen_by_all_singular_values() -> None:
    for matrix in (made(30, 20, "slow").float(), made(20, 30, "slow").float()):
        known = torch.linalg.svdvals(matrix)
        seen: list[Tensor] = []
        found = decompose_by(matrix, lambda values, seen=seen: seen.append(values) or 4)  # type: ignore[misc]
        assert torch.allclose(seen[0].float(), known, rtol=1e-4)
        assert torch.equal(found.up, decompose(matrix, 4).up) and found.rank == 4
        assert decompose_by(matrix, lambda _: 0).rank == 0


def test_small_matrices_and_full_rank_are_exact() -> None:
    for shape, rank in (((100, 300), 7), ((300, 300), 300), ((300, 200), 90)):
        matrix = made(*shape, "flat").float()
        assert torch.equal(decompose(matrix, rank).up, decompose(matrix, rank, exact=True).up)
    matrix = made(300, 200, "flat")
    assert float((product(decompose(matrix, 1000)) - matrix).norm()) < 1e-9 * float(matrix.norm())


def test_the_same_seed_gives_the_same_numbers_and_half_precision_is_taken() -> None:
    matrix = made(300, 300, "flat").half()
    first, again, other = (decompose(matrix, 4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.up, again.up) and not torch.equal(first.up, other.up)
    assert first.up.dtype == torch.float32 and decompose(matrix.double(), 4).up.dtype == torch.float64
    assert float((matrix.double() - product(first)).norm()) <= 1.02 * best_error(matrix.double(), 4)


@pytest.mark.parametrize("exact", [True, False])
def test_zeros_and_what_is_no_number(exact: bool) -> None:
    zero = decompose(torch.zeros(200, 200), 5, exact=exact)
    assert not zero.up.any() and not zero.values.any() and bool(torch.isfinite(zero.down).all())
    for bad in (math.nan, math.inf):
        matrix = torch.ones(200, 200)
        matrix[3, 5] = bad
        with pytest.raises(UserError, match="a.weight holds values that are not finite"):
            decompose(matrix, 5, exact=exact, name="a.weight")


@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_a_product_is_decomposed_without_multiplying_it_out(kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    up, down = (torch.randn(*shape, generator=generator).to(kind) for shape in ((90, 16), (16, 70)))
    whole = up.double() @ down.double()
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    for rank in (1, 6, 16):
        factors = decompose_product(up, down, rank)
        wanted = (left[:, :rank] * values[:rank]) @ right[:rank]
        assert float((product(factors) - wanted).norm()) <= 1e-6 * float(wanted.norm())
        assert torch.allclose(factors.values.double(), values[:rank], rtol=1e-6)
    assert decompose_product(up, down).rank == 16 == decompose_product(up, down, 99).rank
    assert decompose_product(torch.randn(5, 16), torch.randn(16, 70)).rank == 5
    with pytest.raises(UserError, match="not finite"):
        decompose_product(up / 0, down)


def test_rows_to_grow_into() -> None:
    factors = decompose(torch.diag(torch.tensor([3.0, 2.0, 0.0, 0.0, 0.0, 0.0])), 3)
    grown = completed(factors, 5)
    assert torch.allclose(product(grown), product(factors)) and grown.values.tolist()[2:] == [0, 0, 0]
    assert torch.allclose(grown.down @ grown.down.T, torch.eye(5), atol=1e-6)
    assert completed(factors, 99).rank == 6 and completed(factors, 1).rank == 1


@pytest.mark.parametrize("case", VECTORS["rank_resize"], ids=lambda case: f"{case['method']} {case['param']}")
def test_ranks_as_before_with_legacy(case: dict[str, Any]) -> None:
    values = torch.tensor(case["singular_values"])
    assert choose_rank(values, case["method"], case["param"], case["max_rank"], legacy=True) == case["new_rank"]


@pytest.mark.parametrize("case", VECTORS["index"], ids=lambda case: str(list(case.items())[:2]))
def test_as_many_values_as_are_needed(case: dict[str, Any]) -> None:
    values = torch.tensor(case["singular_values"])
    target = case.get("target", case.get("target_ratio"))
    for method in {"sv_ratio", "sv_fro", "sv_cumulative"} & set(case):
        known = case[method]
        if known is None or float(values[0]) < 1e-6:
            assert choose_rank(values, method, target, 99) == 1
        elif known < len(values) - 1:
            assert choose_rank(values, method, target, 99) == known
            assert choose_rank(values, method, target, 2) == min(known, 2)
        else:
            # the known count stops before the last value
            assert choose_rank(values, method, target, 99) == len(values)


def test_all_values_are_kept_where_all_are_asked_for() -> None:
    values = torch.tensor([4.0, 3.0, 2.0, 1.0])
    for method, share in (("sv_cumulative", 1.0), ("sv_fro", 1.0), ("sv_ratio", 100.0)):
        assert choose_rank(values, method, share, 99) == 4
    assert choose_rank(values, None, None, 3) == 3
    with pytest.raises(UserError, match="sv_fro needs a number"):
        choose_rank(values, "sv_fro", None, 3)
    with pytest.raises(UserError, match="no way to choose"):
        choose_rank(values, "sv_max", 1.0, 3)


def test_devices_and_threads() -> None:
    cpu = computing_device(None)
    assert cpu.type == "cpu" and computing_device("cpu") == cpu
    for name in ("no such thing", *(["cuda"] if not torch.cuda.is_available() else [])):
        with pytest.raises(UserError, match=f"load_to is '{name}', which this computer does not have"):
            computing_device(name, "load_to")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert list(in_parallel(lambda item: item * item, iter(range(20)), cpu)) == [item * item for item in range(20)]
        with pytest.raises(ZeroDivisionError):
            list(in_parallel(lambda item: 1 // item, [2, 1, 0, 1], cpu))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
