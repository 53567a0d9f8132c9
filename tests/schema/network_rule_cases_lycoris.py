"""Cases for the rules over LyCORIS, as train_network applies them."""

from typing import Any

from sd_scripts.schema import rules_lycoris

Values = dict[str, Any]

_LOCON = {"LoRA_type": "LyCORIS/LoCon", "network_dim": 16, "network_alpha": 1.0}
_LOKR = {**_LOCON, "LoRA_type": "LyCORIS/LoKr"}
_DYLORA = {**_LOCON, "LoRA_type": "LyCORIS/DyLoRA"}
_BOFT = {**_LOCON, "LoRA_type": "LyCORIS/BOFT"}
_FULL = {**_LOCON, "LoRA_type": "LyCORIS/Native Fine-Tuning"}


def _written(*items: str, **more: Any) -> Values:
    """As on the command line: the module by its name, everything in network_args."""
    return {"network_module": "lycoris.kohya", "network_dim": 16, "network_args": list(items), **more}


# rule, severity, key it marks, values that fire it, values that are the opposite
LYCORIS_CASES: list[tuple[Any, str, str | None, Values, Values]] = [
    (
        rules_lycoris.lycoris_arguments,
        "error",
        "network_args",
        _written("algo=lorra"),
        _written("algo=LoHa"),
    ),
    (
        rules_lycoris.lycoris_arguments,
        "error",
        "network_args",
        {**_LOKR, "network_args": ["full_matrix=perhaps"]},
        {**_LOKR, "network_args": ["full_matrix=False"]},
    ),
    (
        rules_lycoris.lycoris_refused,
        "error",
        "dora_wd",
        {**_LOCON, "dora_wd": True, "bypass_mode": True},
        {**_LOCON, "dora_wd": True},
    ),
    (
        rules_lycoris.lycoris_refused,
        "error",
        "network_args",
        _written("algo=diag-oft", "bypass_mode=True"),
        _written("algo=diag-oft", "bypass_mode=False"),
    ),
    (rules_lycoris.lycoris_refused, "error", "unit", {**_DYLORA, "unit": 3}, {**_DYLORA, "unit": 8}),
    (
        rules_lycoris.lycoris_refused,
        "error",
        "unit",
        {**_DYLORA, "unit": 8, "conv_dim": 4},
        {**_DYLORA, "unit": 8, "conv_dim": 8},
    ),
    (rules_lycoris.lycoris_refused, "error", "network_dim", {**_BOFT, "network_dim": 8}, _BOFT),
    (
        rules_lycoris.lycoris_refused,
        "error",
        "network_args",
        _written("algo=tlora"),
        _written("algo=tlora", "preset=attn-only"),
    ),
    (
        rules_lycoris.lycoris_norms,
        "error",
        "scale_weight_norms",
        {**_FULL, "scale_weight_norms": 1.0},
        {**_LOCON, "scale_weight_norms": 1.0},
    ),
    (
        rules_lycoris.lycoris_ignored,
        "warning",
        "use_tucker",
        {**_LOCON, "use_tucker": True, "LyCORIS_preset": "attn-mlp"},
        {**_LOCON, "use_tucker": True},
    ),
    (
        rules_lycoris.lycoris_ignored,
        "warning",
        "use_scalar",
        {**_FULL, "use_scalar": True},
        {**_LOCON, "use_scalar": True},
    ),
    (
        rules_lycoris.lycoris_ignored,
        "warning",
        "network_dropout",
        {**_LOCON, "network_dropout": 0.1},
        {**_LOCON, "network_dropout": 0.1, "bypass_mode": True},
    ),
    (
        rules_lycoris.lycoris_ignored,
        "warning",
        "network_args",
        _written("algo=lokr", "factr=8"),
        _written("algo=lokr", "factor=8", "use_cp=False", "train_norm=1"),
    ),
]
