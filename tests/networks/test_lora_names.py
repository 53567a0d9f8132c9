"""Names, order, ranks and groups of LoRA modules on the full-size models (without any weights)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sd_scripts.models.assets import model_config
from sd_scripts.models.build import make_text_encoders, make_unet
from sd_scripts.models.view import text_view, unet_view
from sd_scripts.networks.lora import LoRANetwork, create_network
from sd_scripts.networks.lora_blocks import block_index
from sd_scripts.networks.plugin import as_plugged
from sd_scripts.schema.errors import UserError

DATA = Path(__file__).parent / "data"
MODULES: dict[str, list[list[Any]]] = json.loads((DATA / "lora_modules.json").read_text(encoding="utf-8"))
VECTORS = json.loads((DATA / "lora_vectors.json").read_text(encoding="utf-8"))
XL_MODULES = json.loads((DATA / "lora_modules_sdxl.json").read_text(encoding="utf-8"))


@cache
def views(version: str) -> tuple[list[nn.Module], nn.Module]:
    config = model_config(version)
    with torch.device("meta"):
        unet, text_encoders = make_unet(config["unet"]), make_text_encoders(config)
    return [text_view(encoder) for encoder in text_encoders], unet_view(unet)


def network(version: str, dim: int = 1, alpha: float = 1, **arguments: str) -> LoRANetwork:
    text_encoders, unet = views(version)
    return create_network(1.0, dim, alpha, None, as_plugged(text_encoders), unet, **arguments)


def described(made: LoRANetwork) -> list[list[Any]]:
    """Name, kind of layer, width in, width out of every module, in order."""
    rows: list[list[Any]] = []
    for lora in made.loras:
        layer = lora.org_module
        if isinstance(layer, nn.Conv2d):
            kind = "conv1x1" if layer.kernel_size == (1, 1) else "conv3x3"
            rows.append([lora.lora_name, kind, layer.in_channels, layer.out_channels])
        else:
            rows.append([lora.lora_name, "linear", layer.in_features, layer.out_features])
    return rows


@pytest.mark.parametrize("version", ["sd1", "sd2"])
@pytest.mark.parametrize("with_convolutions", [False, True])
def test_modules_are_those_of_the_original_in_its_order(version: str, with_convolutions: bool) -> None:
    made = network(version, **({"conv_dim": "1"} if with_convolutions else {}))
    expected = [row for row in MODULES[version] if with_convolutions or row[4]]
    got = described(made)
    # SD2's projections are linear layers in diffusers; single files were read as 1x1 convolutions there.
    linear = ("_proj_in", "_proj_out") if version == "sd2" else ()
    wanted = [[name, "linear" if name.endswith(linear) else kind, *size] for name, kind, *size, _ in expected]
    assert sorted(got) == sorted(wanted)
    assert [row[0] for row in got] == [row[0] for row in wanted]


@pytest.mark.parametrize("kind", ["default", "with_convolutions"])
def test_modules_of_sdxl_are_those_of_the_original_in_its_order(kind: str) -> None:
    made = network("sdxl", **({} if kind == "default" else {"conv_dim": "1"}))
    expected, got = XL_MODULES[kind], described(made)
    prefixes = Counter(name.split("_")[1] for name, *_ in got)
    assert prefixes == {part: expected[part] for part in ("te1", "te2", "unet")}
    assert Counter(row[1] for row in got) == expected["kinds"]
    assert (got[0][0], got[-1][0]) == (expected["first"], expected["last"])
    # Every name, kind and width, in order.
    text = "\n".join(" ".join(str(part) for part in row) for row in got)
    assert hashlib.sha256(text.encode()).hexdigest() == expected["sha256"]


def test_modules_per_block() -> None:
    case = next(case for case in VECTORS["block_index"] if "count_per_index" in case["out"])
    made = network("sd1", conv_dim="1")
    counted = Counter(str(block_index(lora.lora_name)) for lora in made.unet_loras)
    assert counted == case["out"]["count_per_index"]


@pytest.mark.parametrize("case", VECTORS["param_groups"], ids=lambda case: case["id"])
def test_optimizer_groups(case: dict[str, Any]) -> None:
    given, expected = case["in"], case["out"]
    made = network(given["family"], given["network_dim"], given["network_alpha"], **given["network_args"])
    assert len(made.text_encoder_loras) == expected["te_modules"]
    assert len(made.unet_loras) == expected["unet_modules"]
    made.apply_to()
    made.remove()
    assert len(made.state_dict()) == expected["state_dict_tensors"]
    groups, names = made.prepare_optimizer_params(given["text_encoder_lr"], given["unet_lr"], given["default_lr"])
    got = [
        {
            "tensors": len(group["params"]),
            "numel": sum(parameter.numel() for parameter in group["params"]),
            "lr": pytest.approx(group.get("lr")),
        }
        for group in groups
    ]
    # Where the older program left the rate out, the optimizer's default rate held: the same number. A part with rate 0
    # was a group of its own there, which trained nothing.
    wanted = [
        {**group, "lr": given["default_lr"] if group["lr"] == "absent" else group["lr"]}
        for group in expected["groups"]
        if group["lr"] != 0
    ]
    if given["family"] == "sdxl" and "down_lr_weight" in given["network_args"]:
        # The older program had no block weights for SDXL and passed over them; here, as in newer ones, they count.
        unet = [group for group in got if group["lr"] != given["text_encoder_lr"] or group["tensors"] != 528]
        assert got[:1] == wanted[:1] and len(unet) > 1
        assert [sum(group[key] for group in unet) for key in ("tensors", "numel")] == [
            wanted[1][key] for key in ("tensors", "numel")
        ]
        return
    assert got == wanted
    if expected["descriptions"] is not None:
        assert names == expected["descriptions"]


def test_blocks_of_sdxl_have_their_ranks_alphas_and_rates() -> None:
    """23 numbers of which 20 belong to blocks with layers; 9, 3 and 9 rates."""
    parts: dict[str, list[str]] = json.loads((DATA / "sdxl_blocks.json").read_text(encoding="utf-8"))["blocks"]
    place_of = {part: int(place) for place, names in parts.items() for part in names}
    counted = [str(place + 1) for place in range(23)]
    lists = {"block_dims": counted, "block_alphas": [f"{place}.5" for place in range(23)]}
    lists |= {"conv_block_dims": [f"{place + 51}" for place in range(23)], "conv_block_alphas": ["3"] * 23}
    rates = {"down_lr_weight": "linear+0.5", "mid_lr_weight": "0.5,0,2", "up_lr_weight": "1,1,1,1,1,1,1,1,0.25"}
    made = network("sdxl", **{key: ",".join(numbers) for key, numbers in lists.items()}, **rates)
    seen = set()
    for lora in made.unet_loras:
        place = next(place_of[part] for part in place_of if lora.lora_name.startswith(f"lora_unet_{part}_"))
        large = getattr(lora.org_module, "kernel_size", (1, 1)) != (1, 1)
        assert (lora.lora_dim, float(lora.alpha)) == ((place + 51, 3.0) if large else (place + 1, place + 0.5))
        seen.add(place)
    assert seen == set(range(2, 22)) - {11}, "the block of rate 0 gets no network"
    made.apply_to()
    made.remove()
    groups, names = made.prepare_optimizer_params(None, 1e-3, 1e-3)
    got = dict(zip(names, (group["lr"] for group in groups)))
    assert got.pop("textencoder") == 1e-3
    down = {f"unet_block{place}": 1e-3 * (0.5 + (place - 1) / 8) for place in range(2, 10)}
    middle = {"unet_block10": 5e-4, "unet_block12": 2e-3}
    up = {f"unet_block{place}": 1e-3 for place in range(13, 21)} | {"unet_block21": 2.5e-4}
    assert got == pytest.approx(down | middle | up)


def test_a_part_with_rate_zero_is_frozen_and_has_no_group() -> None:
    made = network("sd1")
    made.apply_to()
    made.remove()
    groups, names = made.prepare_optimizer_params(0.0, 1e-4, 1e-3)
    assert names == ["unet"] and len(groups) == 1
    assert not any(p.requires_grad for lora in made.text_encoder_loras for p in lora.parameters())
    assert len(made.get_trainable_params()) == len(groups[0]["params"])


def test_several_text_encoders_have_numbered_names_and_own_rates() -> None:
    text_encoders, unet = views("sd1")
    made = create_network(1.0, 1, 1, None, text_encoders * 2, unet)
    assert made.loras[0].lora_name == "lora_te1_text_model_encoder_layers_0_self_attn_k_proj"
    assert made.loras[72].lora_name == "lora_te2_text_model_encoder_layers_0_self_attn_k_proj"
    made.apply_to()
    made.remove()
    groups, names = made.prepare_optimizer_params_with_multiple_te_lrs([1e-4, 2e-4], 3e-4)
    assert list(zip(names, (group["lr"] for group in groups))) == [
        ("textencoder1", 1e-4),
        ("textencoder2", 2e-4),
        ("unet", 3e-4),
    ]


def test_alpha_keeps_the_type_it_was_given_in() -> None:
    made = network("sd1", 4, 1)
    assert made.loras[0].alpha.dtype == torch.int64
    made = network("sd1", 4, 2.0, conv_dim="2")
    assert {lora.alpha.dtype for lora in made.loras} == {torch.float32}
    alphas = {lora.lora_dim: float(lora.alpha) for lora in made.loras}
    assert alphas == {4: 2.0, 2: 1.0}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"conv_dim": "four"}, "conv_dim must be a whole number"),
        ({"block_dims": "1,2,3"}, "block_dims needs 25 numbers"),
        ({"conv_dims": "4"}, "Did you mean conv_dim"),
        ({"rank_dropout": "1.5"}, "rank_dropout must be at least 0"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        network("sd1", **arguments)
