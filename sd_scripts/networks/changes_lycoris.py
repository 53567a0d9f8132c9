"""What LyCORIS' kinds of networks make of a layer, from the tensors of a file alone.

Each function takes the tensors of one module by their short names ("hada_w1_a", "alpha", ...), the layer's weight and
bias, and a multiplier, and gives the weight and bias that the layer has with the network on it. They are the numbers of
LyCORIS 4.1.3's forward pass for a module that was read back from the file, with alpha / rank counted once. Everything
is computed in the type of the weight, float32 or float64; nothing given is changed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Changed = tuple[Tensor, Tensor | None]


def _scale(tensors: Tensors, rank: int | None) -> float:
    """alpha / rank (1 without either; an alpha of 0 is the rank), times the strength that old files keep apart."""
    alpha = float(tensors["alpha"]) if "alpha" in tensors else 0.0
    scale = alpha / rank if alpha and rank else 1.0
    return scale * float(tensors["scalar"]) if "scalar" in tensors else scale


def _tucker(core: Tensor, to_out: Tensor, to_in: Tensor) -> Tensor:
    """core [a, b, ...], to_out [a, out] and to_in [b, in] -> [out, in, ...]."""
    return torch.einsum("ab...,ao,bi->oi...", core, to_out, to_in)


def weight_decomposed(weight: Tensor, changed: Tensor, dora_scale: Tensor, multiplier: float) -> Tensor:
    """DoRA: `changed` with each row (or column) stretched to its trained length.

    Args:
        weight: the layer's own weight; gives the type of the result.
        changed: the weight with the whole change of the other tensors added, whatever the multiplier.
        dora_scale: trained lengths, [out, 1, ...] for rows or [1, in, ...] for columns.
        multiplier: how far to go on the straight line from `weight` to that, as the programs that draw do it: 0 changes
            nothing. (LyCORIS' own forward applies it to the stretching alone, so that 0 still changes something.)
    """
    lengths, full = dora_scale.to(weight), changed.to(weight)
    of_rows = lengths.shape[0] == full.shape[0]
    axes = [axis for axis in range(full.dim()) if axis != (0 if of_rows else 1)]
    norms = full.square().sum(dim=axes, keepdim=True).sqrt() + torch.finfo(full.dtype).eps
    shape = [full.shape[axis] if axis not in axes else 1 for axis in range(full.dim())]
    whole = full * (lengths.reshape(shape) / norms)
    return whole if multiplier == 1 else weight + (whole - weight) * multiplier


def _added(tensors: Tensors, weight: Tensor, change: Tensor, multiplier: float) -> Tensor:
    """The weight with a change added, by DoRA's rule where the module has one."""
    if "dora_scale" in tensors:
        return weight_decomposed(weight, weight + change, tensors["dora_scale"], multiplier)
    return weight + change * multiplier


def _loha_change(tensors: Tensors, weight: Tensor) -> Tensor:
    """What a LoHa module adds to this weight at multiplier 1, DoRA aside."""
    halves = []
    for number in "12":
        to_out, to_in = (tensors[f"hada_w{number}_{letter}"].to(weight) for letter in "ab")
        core = tensors.get(f"hada_t{number}")
        halves.append(to_out @ to_in.flatten(1) if core is None else _tucker(core.to(weight), to_out, to_in))
    product = (halves[0] * halves[1]).reshape(weight.shape)
    return product * _scale(tensors, tensors["hada_w1_b"].shape[0])


def loha(tensors: Tensors, weight: Tensor, bias: Tensor | None, multiplier: float) -> Changed:
    """LoHa: the elementwise product of two low-rank matrices, each with a Tucker core or without."""
    return _added(tensors, weight, _loha_change(tensors, weight), multiplier), bias


def _lokr_change(tensors: Tensors, weight: Tensor) -> Tensor:
    """What a LoKr module adds to this weight at multiplier 1, DoRA aside."""
    part = {key: value.to(weight) for key, value in tensors.items() if key.startswith("lokr_")}
    small = part["lokr_w1"] if "lokr_w1" in part else part["lokr_w1_a"] @ part["lokr_w1_b"]
    if "lokr_w2" in part:
        large = part["lokr_w2"]
    elif "lokr_t2" in part:
        large = _tucker(part["lokr_t2"], part["lokr_w2_a"], part["lokr_w2_b"])
    else:
        large = part["lokr_w2_a"] @ part["lokr_w2_b"].flatten(1)
    product = torch.kron(small, large.flatten(1).contiguous()).reshape(weight.shape)
    # With two whole matrices there is an alpha in the file, but no rank to divide it by.
    rank = next((part[key].shape[0] for key in ("lokr_w1_b", "lokr_w2_b") if key in part), None)
    return product * _scale(tensors, rank)


def lokr(tensors: Tensors, weight: Tensor, bias: Tensor | None, multiplier: float) -> Changed:
    """LoKr: the Kronecker product of two matrices, each whole or of low rank, the large one with a Tucker core."""
    return _added(tensors, weight, _lokr_change(tensors, weight), multiplier), bias


def ia3(tensors: Tensors, weight: Tensor, bias: Tensor | None, multiplier: float) -> Changed:
    """IA3: factors for the inputs or the outputs of a layer; the bias is left alone in both cases."""
    factors = 1 + tensors["weight"].to(weight).flatten() * multiplier
    on_input = "on_input" in tensors and bool(tensors["on_input"])
    shape = (1, -1) if on_input else (-1, 1)
    return weight * factors.view(*shape, *([1] * (weight.dim() - 2))), bias


def glora(tensors: Tensors, weight: Tensor, bias: Tensor | None, multiplier: float) -> Changed:
    """GLoRA: W + scale * (W a1 a2 + b1 b2), where a acts on the input channels."""
    a1, a2, b1, b2 = (tensors[f"{name}.weight"].to(weight) for name in ("a1", "a2", "b1", "b2"))
    own = torch.einsum("oi...,ij->oj...", weight, a1.flatten(1) @ a2.flatten(1))
    core = tensors.get("bm.weight")
    if core is None:
        free = (b1.flatten(1) @ b2.flatten(1)).reshape(weight.shape)
    else:
        free = _tucker(core.to(weight), b1.flatten(1).T, b2.flatten(1))
    return weight + (own + free) * (_scale(tensors, a2.shape[0]) * multiplier), bias


def _rotations(tensors: Tensors, weight: Tensor) -> Tensor:
    """Orthogonal blocks [..., n, n] by Cayley's transform, turned no further than the limit that `alpha` gives."""
    blocks = tensors["oft_blocks"].to(weight)
    skew = blocks - blocks.transpose(-1, -2)
    limit = (float(tensors["alpha"]) if "alpha" in tensors else 0.0) * weight.shape[0]
    if limit > 0:
        norm = float(skew.norm()) + 1e-8
        skew = skew * (limit / norm) if norm > limit else skew
    unit = torch.eye(blocks.shape[-1]).to(weight)
    return torch.linalg.solve(unit - skew, unit + skew)


def _rescaled(tensors: Tensors, turned: Tensor) -> Tensor:
    """The weight with each row times its trained factor; LyCORIS applies these whatever the multiplier."""
    if "rescale" not in tensors:
        return turned
    return turned * tensors["rescale"].to(turned).view(-1, *([1] * (turned.dim() - 1)))


def diag_oft(tensors: Tensors, weight: Tensor, bias: Tensor | None, multiplier: float) -> Changed:
    """Diag-OFT: the rows of a weight turned in blocks that lie one after the other."""
    turn = _rotations(tensors, weight)
    count, size, _ = turn.shape
    unit = torch.eye(size).to(weight)
    rows = weight.reshape(count, size, -1)
    turned = torch.einsum("knm,knx->kmx", unit + multiplier * (turn - unit), rows)
    return _rescaled(tensors, turned.reshape(weight.shape)), bias


def boft(tensors: Tensors, weight: Tensor, bias: Tensor | None, multiplier: float) -> Changed:
    """BOFT: rows turned in several stages, each over rows that lie twice as far apart as in the stage before."""
    turn = _rotations(tensors, weight)
    stages, _, size, _ = turn.shape
    unit = torch.eye(size).to(weight)
    turned = weight.flatten(1)
    for stage in range(stages):
        step = 2**stage * (size // 2)
        spread = turned.unflatten(0, (-1, 2, step)).transpose(1, 2)
        blocks = spread.reshape(-1, size, turned.shape[1])
        blocks = torch.einsum("bij,bjx->bix", unit + multiplier * (turn[stage] - unit), blocks)
        turned = blocks.reshape(spread.shape).transpose(1, 2).reshape(turned.shape)
    return _rescaled(tensors, turned.reshape(weight.shape)), bias


def _sums(
    weight: Tensor, bias: Tensor | None, of_weight: Tensor | None, of_bias: Tensor | None, multiplier: float
) -> Changed:
    """Both with their difference added where there is one; a bias can appear where there was none."""
    if of_weight is not None:
        weight = weight + of_weight.to(weight).reshape(weight.shape) * multiplier
    if of_bias is None:
        return weight, bias
    change = of_bias.to(weight if bias is None else bias) * multiplier
    return weight, change if bias is None else bias + change


def full(tensors: Tensors, weight: Tensor, bias: Tensor | None, multiplier: float) -> Changed:
    """Native fine-tuning: the difference itself, of the weight and of the bias where the layer has one."""
    return _sums(weight, bias, tensors.get("diff"), tensors.get("diff_b"), multiplier)


def norm(tensors: Tensors, weight: Tensor, bias: Tensor | None, multiplier: float) -> Changed:
    """A normalisation layer: the differences of its weight and its bias."""
    return _sums(weight, bias, tensors.get("w_norm"), tensors.get("b_norm"), multiplier)
