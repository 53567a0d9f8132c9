"""Matrices as products of two thin ones: singular value decompositions cut at a rank.

The fast way is a randomised range finder with power iterations (Halko, Martinsson, Tropp: Finding structure with
randomness, 2011, algorithm 4.4): multiply a few random vectors more than the rank by the matrix, to and fro, making
them orthonormal every time, and decompose what is left of the matrix on that small space.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from sd_scripts.schema.errors import UserError

METHODS = ("sv_ratio", "sv_fro", "sv_cumulative")
ITERATIONS = 3
_LEAST_OVERSAMPLING = 16
_WIDTH = 16  # products with so many columns, or a multiple, run at full speed
_SMALL = 128  # sides up to this are decomposed exactly: it takes no longer
_NOTHING = 1e-6  # a matrix whose largest singular value is below has no effect that could be seen
_ZERO = 1e-12  # of the largest singular value; below, a direction is rounding noise of float64


@dataclass(frozen=True)
class Factors:
    """`up @ down` stands for a matrix.

    Attributes:
        up: [out, rank], columns scaled by the singular values.
        down: [rank, in], orthonormal rows; rows of zeros where the singular value is zero.
        values: [rank], the singular values, largest first.
    """

    up: Tensor
    down: Tensor
    values: Tensor

    @property
    def rank(self) -> int:
        """Number of singular values kept."""
        return len(self.values)

    def cut(self, rank: int) -> Factors:
        """The first so many."""
        return Factors(self.up[:, :rank], self.down[:rank], self.values[:rank])


def oversampled(rank: int) -> int:
    """Random vectors for a rank: with ITERATIONS, flat spectra come within 1.5 % of the smallest possible error."""
    wanted = rank + max(_LEAST_OVERSAMPLING, rank // 4)
    return -(-wanted // _WIDTH) * _WIDTH


def decompose(matrix: Tensor, rank: int, *, exact: bool = False, seed: int = 0, name: str = "The matrix") -> Factors:
    """The product of two thin matrices of this rank that comes nearest to `matrix`.

    Args:
        matrix: [out, in] on any device; half precision is computed in float32.
        rank: at most the shorter side; more is cut to that.
        exact: to rounding, through float64. Else the error is within 2 % of the smallest possible one, many times
            faster; small matrices and ranks near full are exact all the same.
        seed: of the random vectors.
        name: what the matrix is called in an error.

    Returns:
        In float32, or in float64 if the matrix is.

    Raises:
        UserError: a value is not finite.
    """
    work = matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.float()
    largest = require_finite(work, name)
    short = min(work.shape)
    rank = min(rank, short)
    if largest == 0:
        return Factors(work.new_zeros(len(work), rank), work.new_zeros(rank, work.shape[1]), work.new_zeros(rank))
    vectors = oversampled(rank)
    if exact or short <= _SMALL or 2 * vectors >= short:
        found = _exactly(work.double(), lambda _: rank)
    else:
        basis = _range(work, vectors, seed)
        found = _on_basis(work, basis, rank)
    return _cast(found, work.dtype)


def decompose_by(matrix: Tensor, choose: Callable[[Tensor], int], *, name: str = "The matrix") -> Factors:
    """As an exact `decompose`, at the rank that `choose` says of all singular values, largest first; 0 is allowed.

    Raises:
        UserError: a value is not finite.
    """
    work = matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.float()
    require_finite(work, name)
    return _cast(_exactly(work.double(), choose), work.dtype)


def _cast(found: Factors, kind: torch.dtype) -> Factors:
    return Factors(found.up.to(kind), found.down.to(kind), found.values.to(kind))


def require_finite(matrix: Tensor, name: str) -> float:
    """The largest absolute value, 0 of nothing. Raises UserError if a value is NaN or infinite."""
    if not matrix.numel():
        return 0.0
    # both ends are NaN if any value is; this is many times faster than a norm
    largest = float(torch.stack(torch.aminmax(matrix)).abs().max())
    if not isfinite(largest):
        raise UserError(f"{name} holds values that are not finite (NaN or infinity); the file is damaged.")
    return largest


def decompose_product(up: Tensor, down: Tensor, rank: int | None = None, *, name: str = "The product") -> Factors:
    """The nearest product of this rank to `up @ down`, without multiplying them out; exact to rounding.

    Args:
        up: [out, old rank].
        down: [old rank, in].
        rank: at most the shortest side, which is also what None means.
        name: what it is called in an error.

    Returns:
        In float32, or in float64 if both are.

    Raises:
        UserError: a value is not finite.
    """
    kind = torch.promote_types(torch.promote_types(up.dtype, down.dtype), torch.float32)
    for part in (up, down):
        require_finite(part, name)
    left, upper = torch.linalg.qr(up.double())
    right, lower = torch.linalg.qr(down.double().T)
    turned, values, back = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    rank = len(values) if rank is None else min(rank, len(values))
    found = Factors(left @ (turned[:, :rank] * values[:rank]), back[:rank] @ right.T, values[:rank])
    return _cast(found, kind)


def _range(matrix: Tensor, vectors: int, seed: int) -> Tensor:
    """[out, vectors] orthonormal columns that hold nearly all of the matrix's large directions."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(matrix.shape[1], vectors, generator=generator, dtype=matrix.dtype).to(matrix.device)
    reached, _ = torch.linalg.qr(matrix @ start)
    for _ in range(ITERATIONS):
        back, _ = torch.linalg.qr((reached.T @ matrix).T)
        reached, _ = torch.linalg.qr(matrix @ back)
    return reached


def _on_basis(matrix: Tensor, basis: Tensor, rank: int) -> Factors:
    """The decomposition of the part of the matrix that lies in the span of `basis` [out, vectors]."""
    part = basis.T @ matrix
    _, turns = _directions(part.double())
    turns = turns[:, :rank].to(matrix.dtype)
    return _factors(basis @ turns, turns.T @ part)


def _exactly(matrix: Tensor, choose: Callable[[Tensor], int]) -> Factors:
    if matrix.shape[0] > matrix.shape[1]:
        turned = _exactly(matrix.T, choose)
        return Factors(turned.down.T * turned.values, (turned.up / _divisors(turned.values)).T, turned.values)
    values, turns = _directions(matrix)
    turns = turns[:, : choose(values)]
    return _factors(turns, turns.T @ matrix)


def _directions(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """All singular values, and the left vectors [rows, rows], of a float64 matrix with few rows, largest first."""
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return squares.clamp(min=0).sqrt().flip(0), vectors.flip(1)


def _factors(left: Tensor, scaled_right: Tensor) -> Factors:
    """From orthonormal columns [out, rank] and orthogonal rows [rank, in] that still carry the singular values."""
    values = torch.linalg.vector_norm(scaled_right, dim=1)
    return Factors(left * values, scaled_right / _divisors(values)[:, None], values)


def _divisors(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, torch.ones_like(values))


def completed(factors: Factors, rank: int, seed: int = 0) -> Factors:
    """The same product with `rank` rows: what is missing or zero gets zero in `up` and a new direction in `down`.

    A network made of it can be trained further: with zero on both sides nothing would ever move.
    """
    largest = float(factors.values.max()) if factors.rank else 0.0
    kept = int((factors.values > largest * _ZERO).sum()) if largest > 0 else 0
    rank = min(rank, factors.down.shape[1])
    if kept >= rank:
        return factors.cut(rank)
    generator = torch.Generator().manual_seed(seed)
    missing = rank - kept
    drawn = torch.randn(factors.down.shape[1], missing, generator=generator, dtype=torch.float64)
    rows = factors.down[:kept].double()
    new = drawn.to(rows.device)
    for _ in range(2):  # the second time takes out what rounding left in
        new, _ = torch.linalg.qr(new - rows.T @ (rows @ new))
    kind = factors.down.dtype
    return Factors(
        torch.cat([factors.up[:, :kept], factors.up.new_zeros(len(factors.up), missing)], dim=1),
        torch.cat([factors.down[:kept], new.T.to(kind)]),
        torch.cat([factors.values[:kept], factors.values.new_zeros(missing)]),
    )


def choose_rank(values: Tensor, method: str | None, param: float | None, max_rank: int, legacy: bool = False) -> int:
    """How many singular values to keep, at least one and at most `max_rank`.

    Args:
        values: singular values, largest first.
        method: "sv_ratio" keeps those above the largest divided by `param`; "sv_cumulative" keeps as few as add up to
            the share `param` of the sum; "sv_fro" as few as keep the share `param` of the Frobenius norm. None keeps
            `max_rank`.
        param: see there.
        max_rank: the most.
        legacy: one more than that, and never counted up to the last value, as sd-scripts does it.

    Raises:
        UserError: the method is unknown or lacks its number.
    """
    if len(values) == 0 or float(values[0]) <= _NOTHING:
        return 1
    if method is None:
        return max_rank
    if param is None:
        raise UserError(f"{method} needs a number.", "dynamic_param")
    if method == "sv_ratio":
        count = int((values > values[0] / param).sum())
    elif method in METHODS:
        weights = values.double() ** (2 if method == "sv_fro" else 1)
        share = param**2 if method == "sv_fro" else param
        reached = torch.cumsum(weights, 0) / weights.sum()
        count = int(torch.searchsorted(reached, share * (1 - 1e-12))) + 1
    else:
        raise UserError(f"{method} is no way to choose a rank.", "dynamic_method", f"Known: {', '.join(METHODS)}.")
    count = max(1, min(count, len(values) - 1 if legacy else len(values)))
    return max(1, min(count + legacy, max_rank))
