"""Cases for the rules over single kinds of networks, as train_network applies them."""

from typing import Any

from sd_scripts.schema import rules_networks

Values = dict[str, Any]

_DYLORA = {"network_module": "networks.dylora", "network_dim": 8}
_OFT = {"network_module": "networks.oft", "network_dim": 8}

# rule, severity, key it marks, values that fire it, values that are the opposite
KIND_CASES: list[tuple[Any, str, str | None, Values, Values]] = [
    (
        rules_networks.convolutions_of_dylora,
        "error",
        "conv_dim",
        {**_DYLORA, "conv_dim": 4},
        {**_DYLORA, "conv_dim": 8},
    ),
    (rules_networks.blocks_of_oft, "error", "network_dim", {**_OFT, "network_dim": 3}, _OFT),
    (rules_networks.limit_of_oft, "error", "network_alpha", {**_OFT, "network_alpha": 0.0}, _OFT),
    (rules_networks.norms_of_oft, "error", "scale_weight_norms", {**_OFT, "scale_weight_norms": 1.0}, _OFT),
    (
        rules_networks.factor_of_lokr,
        "error",
        "factor",
        {"network_module": "networks.lokr", "factor": 0},
        {"network_module": "networks.lokr", "factor": 4},
    ),
]
