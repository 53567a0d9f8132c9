"""Rules over settings that only one kind of network has."""

from .finding import Finding, Rule, Values, error, rule
from .loratypes import LYCORIS, OWN_ARGUMENTS
from .suggest import nearest

# The narrowest layers that OFT turns: everything in Stable Diffusion 1 and 2, and the convolutions of SDXL, has a
# multiple of 320 outputs, the attention of SDXL a multiple of 640.
_NARROW, _WIDE = 320, 640


@rule("conv_dim", "network_dim")
def convolutions_of_dylora(values: Values) -> Finding | None:
    """DyLoRA has one rank for everything."""
    conv_dim, rank = values["conv_dim"], values["network_dim"]
    if values["network_module"] == "networks.dylora" and conv_dim and rank and conv_dim != rank:
        return error(
            "conv_dim",
            f"Convolution rank {conv_dim} is not the rank {rank}, as DyLoRA needs it.",
            "Give both the same rank, or leave the convolution rank empty.",
        )
    return None


@rule("network_module", "network_dim", "enable_conv")
def blocks_of_oft(values: Values) -> Finding | None:
    """OFT's rank is a number of blocks that every layer is cut into."""
    number = values["network_dim"]
    if values["network_module"] != "networks.oft" or not number:
        return None
    outputs = _WIDE if values["sdxl"] and not values["enable_conv"] else _NARROW
    if outputs % number:
        return error(
            "network_dim",
            f"OFT cuts every layer into as many blocks as the rank says, but {number} does not divide {outputs}.",
            "Choose 2, 4, 5, 8, 10, 16, 20, 32, 40 or 64.",
        )
    return None


@rule("network_module", "network_alpha")
def limit_of_oft(values: Values) -> Finding | None:
    """OFT's alpha is how far it may turn."""
    alpha = values["network_alpha"]
    if values["network_module"] == "networks.oft" and alpha is not None and alpha <= 0:
        return error(
            "network_alpha",
            f"With OFT, alpha limits how far the layers turn, and {alpha:g} would not let them.",
            "1 is practically no limit, 0.001 is a careful one.",
        )
    return None


@rule("network_module", "scale_weight_norms")
def norms_of_oft(values: Values) -> Finding | None:
    """Turning keeps norms as they are."""
    if values["network_module"] == "networks.oft" and values["scale_weight_norms"]:
        return error(
            "scale_weight_norms", "OFT only turns weights, so there is no norm to limit.", "Leave the limit empty."
        )
    return None


@rule("network_module", "factor")
def factor_of_lokr(values: Values) -> Finding | None:
    """A matrix cannot be split into pieces of size 0."""
    if values["network_module"] == "networks.lokr" and values["factor"] == 0:
        return error("factor", "LoKr cannot split matrices by 0.", "-1 makes the most even split.")
    return None


@rule("network_module", "network_args")
def known_arguments(values: Values) -> Finding | None:
    """A network of this program takes the arguments that are written out."""
    module = str(values["network_module"] or "").removeprefix("sd_scripts.")
    known = OWN_ARGUMENTS.get(module, frozenset())
    for item in values["network_args"] or [] if known else []:
        name, equals, _ = str(item).partition("=")
        if equals and name.strip() not in known:
            hint = nearest(name.strip(), known) or f"It takes {', '.join(sorted(known))}."
            return error("network_args", f"{module} does not know {name.strip()[:80]}.", hint)
    return None


@rule("network_module", "network_dropout")
def something_left(values: Values) -> Finding | None:
    """A chance of 1 leaves out everything."""
    # Those of LyCORIS are looked at with its other arguments.
    others = () if values["network_module"] == LYCORIS else ("rank_dropout", "module_dropout")
    for key in ("network_dropout", *others):
        if (values.get(key) or 0) >= 1:
            return error(
                key, "A chance of 1 leaves out everything in every step, so nothing is learned.", "Take 0.1 to 0.3."
            )
    return None


RULES: tuple[Rule, ...] = (
    convolutions_of_dylora, blocks_of_oft, limit_of_oft, norms_of_oft, factor_of_lokr, known_arguments, something_left,
)  # fmt: skip
