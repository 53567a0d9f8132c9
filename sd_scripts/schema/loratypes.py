"""The kinds of LoRA that the page offers: which module each is, and which settings it takes."""

from dataclasses import dataclass, replace

from .option import Condition, In

LYCORIS = "lycoris.kohya"
OWN_NETWORKS = (
    "networks.lora", "networks.lora_fa", "networks.dylora", "networks.oft", "networks.loha", "networks.lokr",
)  # fmt: skip


@dataclass(frozen=True)
class LoraType:
    """One kind of network.

    `module` is the --network_module (None: the person names it). `fixed` are items that always go into --network_args.
    `args` pairs an option key with the name the module expects. `rank` says whether it has a rank and an alpha,
    `dropout` whether --network_dropout works, `max_norm` whether --scale_weight_norms does, `weights` whether it can go
    on from a file.
    """

    module: str | None
    fixed: tuple[str, ...] = ()
    args: tuple[tuple[str, str], ...] = ()
    rank: bool = True
    dropout: bool = True
    max_norm: bool = True
    weights: bool = True


def _same(*keys: str) -> tuple[tuple[str, str], ...]:
    return tuple((key, key) for key in keys)


_PLUS = _same("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
_BLOCKS = _same(
    "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold", "block_dims", "block_alphas",
    "conv_block_dims", "conv_block_alphas",
)  # fmt: skip
_CONV = _same("conv_dim", "conv_alpha")
_DROP = _same("rank_dropout", "module_dropout")
_START = _same("dora_wd", "rs_lora", "init_lora_weights")
_PRESET = (("LyCORIS_preset", "preset"),)
_TURN = _same("use_tucker", "rank_dropout_scale", "rescaled", "train_norm") + (("constrain", "constraint"),)
_SPLIT = _same("use_tucker", "use_scalar", "rank_dropout_scale", "bypass_mode", "dora_wd", "train_norm")


def _lycoris(algo: str, args: tuple[tuple[str, str], ...], conv: bool = True) -> LoraType:
    return LoraType(LYCORIS, (f"algo={algo}",), _PRESET + (_CONV if conv else ()) + args + _PLUS)


LORA_TYPES: dict[str, LoraType] = {
    "Standard": LoraType("networks.lora", args=_BLOCKS + _DROP + _PLUS + _START),
    "Kohya LoCon": LoraType("networks.lora", args=_CONV + _BLOCKS + _DROP + _PLUS + _START),
    "LoRA-FA": LoraType("networks.lora_fa", args=_CONV + _BLOCKS + _DROP + _PLUS),
    "Kohya DyLoRA": LoraType("networks.dylora", args=_CONV + _same("unit") + _PLUS),
    "Kohya LoHa": LoraType("networks.loha", args=_CONV + _DROP + _same("use_tucker") + _PLUS),
    "Kohya LoKr": LoraType(
        "networks.lokr", args=_CONV + _DROP + _same("use_tucker", "factor", "decompose_both") + _PLUS
    ),
    "Kohya OFT": LoraType(
        "networks.oft", args=_same("enable_all_linear", "enable_conv"), dropout=False, max_norm=False
    ),
    "LyCORIS/LoCon": _lycoris("locon", _DROP + _SPLIT),
    "LyCORIS/LoHa": _lycoris("loha", _DROP + _SPLIT),
    "LyCORIS/LoKr": _lycoris("lokr", _DROP + _SPLIT + _same("factor", "use_cp", "decompose_both")),
    "LyCORIS/GLoRA": _lycoris("glora", _DROP + _same("rank_dropout_scale", "train_norm")),
    "LyCORIS/iA3": replace(_lycoris("ia3", _same("train_on_input")), rank=False, dropout=False, max_norm=False),
    "LyCORIS/Diag-OFT": _lycoris("diag-oft", _DROP + _TURN + _same("use_scalar")),
    "LyCORIS/BOFT": _lycoris("boft", _DROP + _TURN),
    "LyCORIS/DyLoRA": _lycoris("dylora", _DROP + _same("use_tucker", "train_norm") + (("unit", "block_size"),)),
    "LyCORIS/Native Fine-Tuning": replace(
        _lycoris("full", _DROP + _same("rank_dropout_scale", "use_tucker", "use_scalar", "train_norm"), conv=False),
        rank=False, max_norm=False,
    ),
    "Custom": LoraType(None),
}  # fmt: skip

# What a network takes beside that: as written out by people who know it, or sent by forms with every kind.
_CHOICE = ("exclude_patterns", "include_patterns", "network_reg_dims", "network_reg_lrs", "verbose")
_NAMES = {
    module: {name for kind in LORA_TYPES.values() if kind.module == module for _, name in kind.args}
    for module in OWN_NETWORKS
}
_MORE = {"networks.dylora": (*dict(_BLOCKS), *dict(_DROP)), "networks.loha": (*dict(_BLOCKS), *_CHOICE)}
_MORE["networks.lokr"] = _MORE["networks.loha"]
OWN_ARGUMENTS: dict[str, frozenset[str]] = {
    module: frozenset((*names, *_MORE.get(module, ()), "dropout")) for module, names in _NAMES.items()
}
"""Network module of this program -> the names that it takes among --network_args."""


def Offers(key: str) -> Condition:
    """Holds where the chosen LoRA type has this setting."""
    if key == "network_dropout":
        return In("LoRA_type", *(name for name, kind in LORA_TYPES.items() if kind.dropout))
    return In("LoRA_type", *(name for name, kind in LORA_TYPES.items() if key in dict(kind.args)))


WITH_RANK = In("LoRA_type", *(name for name, kind in LORA_TYPES.items() if kind.rank))
WITH_MAX_NORM = In("LoRA_type", *(name for name, kind in LORA_TYPES.items() if kind.max_norm))
WITH_WEIGHTS = In("LoRA_type", *(name for name, kind in LORA_TYPES.items() if kind.weights))
