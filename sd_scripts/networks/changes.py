"""What a network's module does to the layer that it belongs to, as new weights of that layer.

For plain LoRA

    weight' = weight + multiplier * alpha / rank * up x down

where `alpha` missing or 0 stands for the rank. The tensors of a module go by the names they have behind its own:
`lora_up.weight`, `alpha`, ... Everything is computed in the type of the weight given, which is float32 or float64.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod

import torch
from torch import Tensor

KINDS = ("lora", "loha", "lokr", "ia3", "glora", "diag-oft", "boft", "full", "norm", "oft")
# Kinds whose effect is one added matrix, the same whatever the layer's own weight is.
ADDED = ("lora", "loha", "lokr", "full")
# What gives a kind away, and what it cannot do without: any of the first, all of the second.
_SIGNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "lora": (("lora_up.weight", "lora_down.weight"), ("lora_up.weight", "lora_down.weight")),
    "loha": (("hada_w1_a", "hada_w2_a"), ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")),
    "lokr": (("lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a"), ()),
    "ia3": (("on_input",), ("weight", "on_input")),
    "glora": (("a1.weight", "b1.weight"), ("a1.weight", "a2.weight", "b1.weight", "b2.weight")),
    "diag-oft": (("oft_blocks",), ("oft_blocks",)),
    "full": (("diff", "diff_b"), ()),
    "norm": (("w_norm", "b_norm"), ()),
}
_BUTTERFLY_AXES = 4
DORA = "dora_scale"


class Misfit(ValueError):
    """A module's tensors do not fit the layer, or each other; the text says how."""


def kind_of(tensor_names: Collection[str], *, axes: int = 3, module: str = "") -> str:
    """The kind of a module from the names of its tensors (behind its own), one of KINDS; "" for an unknown one.

    Args:
        tensor_names: such as `lora_up.weight`, `alpha`.
        axes: of `oft_blocks`: 3 for LyCORIS' diagonal OFT, 4 for its butterflies.
        module: the module's own name, which begins with `oft_` for kohya's OFT.

    Raises:
        Misfit: a tensor that this kind needs is missing.
    """
    names = set(tensor_names)
    for kind, (signs, needed) in _SIGNS.items():
        if names.isdisjoint(signs):
            continue
        missing = [name for name in needed if name not in names]
        if missing:
            raise Misfit(f"has {min(names.intersection(signs))} but no {missing[0]}")
        if kind == "diag-oft":
            return "oft" if module.startswith("oft_") else "boft" if axes == _BUTTERFLY_AXES else kind
        return kind
    return ""


def scale_of(tensors: Mapping[str, Tensor], rank: int) -> float:
    """alpha / rank, 1 where alpha is missing or 0; times the strength that old LyCORIS files keep apart."""
    alpha = float(tensors["alpha"]) if "alpha" in tensors else 0.0
    return (alpha or rank) / rank * (float(tensors["scalar"]) if "scalar" in tensors else 1.0)


def changed(
    tensors: Mapping[str, Tensor],
    weight: Tensor,
    bias: Tensor | None,
    multiplier: float,
    kind: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer with the module's effect in them: what the loaded network does at that multiplier.

    Args:
        tensors: of the module, by their names behind its own.
        weight: of the layer, float32 or float64, in the shape that training sees; it stays as it is.
        bias: of the layer, or None where it has none.
        multiplier: strength; any number.
        kind: one of KINDS; found out from the tensors if not given (but kohya's OFT looks as LyCORIS' then).

    Returns:
        New weight and bias, in the types and shapes of those given. A bias can appear where there was none.

    Raises:
        Misfit: the tensors do not fit the layer.
    """
    if kind is None:
        blocks = tensors.get("oft_blocks")
        kind = kind_of(tensors, axes=3 if blocks is None else blocks.dim())
    if kind == "lora":
        return _lora(tensors, weight, multiplier), _bias(tensors, bias, multiplier)
    if kind == "oft":
        from sd_scripts.networks.changes_oft import oft

        return oft(tensors, weight, bias, multiplier)
    from sd_scripts.networks import changes_lycoris

    functions = {
        "loha": changes_lycoris.loha,
        "lokr": changes_lycoris.lokr,
        "ia3": changes_lycoris.ia3,
        "glora": changes_lycoris.glora,
        "diag-oft": changes_lycoris.diag_oft,
        "boft": changes_lycoris.boft,
        "full": changes_lycoris.full,
        "norm": changes_lycoris.norm,
    }
    if kind not in functions:
        raise Misfit(f"is of no known kind (it has {', '.join(sorted(tensors))})")
    try:
        return functions[kind](tensors, weight, bias, multiplier)
    except KeyError as error:
        raise Misfit(f"has no {error.args[0]}") from error
    except RuntimeError as error:
        # torch's word for shapes that do not go together
        raise Misfit(f"does not fit a weight of shape {list(weight.shape)} ({str(error).splitlines()[0]})") from error


def difference(
    tensors: Mapping[str, Tensor],
    shape: tuple[int, ...],
    multiplier: float,
    kind: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """What a module of a kind in ADDED adds to a weight of that shape, leaving a bias aside.

    Raises:
        Misfit: it is of another kind, decomposed (DoRA), or of another shape.
    """
    kind = kind_of(tensors) if kind is None else kind
    if kind not in ADDED:
        raise Misfit(f"is of kind {kind or 'unknown'}, whose effect depends on the model's own weights")
    if DORA in tensors:
        raise Misfit("is decomposed (DoRA), so that its effect depends on the model's own weights")
    return changed(tensors, torch.zeros(shape, dtype=dtype), None, multiplier, kind)[0]


def factors(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, float]:
    """A LoRA module as (up [out, rank], down [rank, in] or [rank, in, kh, kw], alpha / rank), on the stored values.

    A Tucker core (`lora_mid`) is multiplied into `down`.

    Raises:
        Misfit: the parts do not fit each other.
    """
    up, down, mid = tensors["lora_up.weight"], tensors["lora_down.weight"], tensors.get("lora_mid.weight")
    scale = scale_of(tensors, down.shape[0])
    up = up.flatten(1)
    if mid is not None:
        if mid.dim() != 4 or mid.shape[1] != down.shape[0]:
            raise Misfit(f"has a lora_mid of shape {list(mid.shape)} and a lora_down of shape {list(down.shape)}")
        down = torch.einsum("abhw,bi->aihw", mid, down.flatten(1).to(mid.dtype))
    if up.shape[1] != down.shape[0]:
        raise Misfit(f"has a lora_up of shape {list(up.shape)} and a lora_down of shape {list(down.shape)}")
    return up, down, scale


def _lora(tensors: Mapping[str, Tensor], weight: Tensor, multiplier: float) -> Tensor:
    if DORA in tensors:
        from sd_scripts.networks.changes_lycoris import weight_decomposed

        plain = {name: value for name, value in tensors.items() if name != DORA}
        return weight_decomposed(weight, _lora(plain, weight, 1.0), tensors[DORA], multiplier)
    return add_lora(tensors, weight.clone(memory_format=torch.contiguous_format), multiplier)


def is_plain_lora(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a module does nothing but add its low-rank product, so that `add_lora` says all of it."""
    return "lora_up.weight" in tensors and "lora_down.weight" in tensors and not {DORA, "diff_b"} & tensors.keys()


def add_lora(tensors: Mapping[str, Tensor], weight: Tensor, multiplier: float) -> Tensor:
    """Add the effect of a plain LoRA module to `weight` in place, which must be contiguous; returns it.

    Raises:
        Misfit: the tensors do not fit the layer.
    """
    up, down, scale = factors({name: value.to(weight) for name, value in tensors.items()})
    if up.shape[0] != weight.shape[0] or down[0].numel() != prod(weight.shape[1:]):
        made = [up.shape[0], *down.shape[1:]]
        raise Misfit(f"makes a change of shape {made} for a weight of shape {list(weight.shape)}")
    weight.view(weight.shape[0], -1).addmm_(up, down.flatten(1), alpha=scale * multiplier)
    return weight


def _bias(tensors: Mapping[str, Tensor], bias: Tensor | None, multiplier: float) -> Tensor | None:
    """Some programs put the change of a bias beside the low-rank change of the weight."""
    change = tensors.get("diff_b")
    if change is None:
        return bias
    added = change.float() * multiplier if bias is None else change.to(bias) * multiplier
    return added if bias is None else bias + added
