"""Cases for the rules over single kinds of networks, as train_network applies them."""

from typing import Any

from sd_scripts.schema import rules_lycoris, rules_network, rules_networks

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
    (
        rules_networks.known_arguments,
        "error",
        "network_args",
        {"network_module": "sd_scripts.networks.lora", "network_args": ["conv_dim=4", "wild=True"]},
        {"network_module": "sd_scripts.networks.lora", "network_args": ["conv_dim=4", "dora_wd=True"]},
    ),
    (rules_networks.something_left, "error", "network_dropout", {"network_dropout": 1.0}, {"network_dropout": 0.9}),
    (rules_networks.something_left, "error", "module_dropout", {"module_dropout": 1.0}, {"module_dropout": None}),
    (
        rules_lycoris.lycoris_refused,
        "error",
        "rank_dropout",
        {"LoRA_type": "LyCORIS/LoHa", "rank_dropout": 1.0},
        {"LoRA_type": "LyCORIS/LoHa", "rank_dropout": 0.5},
    ),
    *[
        (rules_network.block_numbers, "error", key, {key: wrong}, {key: right})
        for key, wrong, right in (
            ("block_dims", ",".join(["4"] * 24 + ["4.5"]), ",".join("4" * 25)),
            ("conv_block_alphas", ",".join(["a"] * 25), ",".join(["0.5"] * 25)),
            ("down_lr_weight", "banana", "reverse_linear"),
            ("up_lr_weight", "1", "1,,0.5"),
            ("mid_lr_weight", "cosin", "0.5"),
        )
    ],
]
