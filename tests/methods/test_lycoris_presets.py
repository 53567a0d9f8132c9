"""What each preset of LyCORIS trains on full-size models of version 1 and XL: how many layers, and which."""

from __future__ import annotations

import functools
import logging
import re

import pytest
import torch
from torch import nn

from sd_scripts.models.assets import model_config
from sd_scripts.models.build import make_text_encoders, make_unet
from sd_scripts.models.view import text_view, unet_view
from sd_scripts.networks.plugin import Plugin, load_plugin
from sd_scripts.schema.lycoris import PRESETS

pytest.importorskip("lycoris.kohya")

# preset -> (layers of the U-Net, 3x3 convolutions among them, layers of the text encoders)
COUNTS = {
    "sd1": {
        "full": (282, 52, 72),
        "full-lin": (230, 0, 72),
        "attn-mlp": (192, 0, 72),
        "attn-only": (128, 0, 48),
        "unet-only": (282, 52, 0),
        "unet-transformer-only": (192, 0, 0),
        "unet-convblock-only": (88, 52, 0),
        "ia3": (80, 0, 36),
    },
    "sdxl": {
        "full": (788, 38, 264),
        "full-lin": (750, 0, 264),
        "attn-mlp": (722, 0, 264),
        "attn-only": (560, 0, 176),
        "unet-only": (788, 38, 0),
        "unet-transformer-only": (722, 0, 0),
        "unet-convblock-only": (66, 38, 0),
        "ia3": (350, 0, 132),
    },
}
# What the names of all trained layers have in them, of any kind of model and of its text encoders.
PATTERNS = {
    "attn-mlp": r"_(proj_in|proj_out|transformer_blocks_\d+_(attn[12]|ff)_.+|(self_attn|mlp)_.+)$",
    "attn-only": r"_(attn[12]|self_attn)_",
    "unet-only": r"^lora_unet_",
    "unet-transformer-only": r"^lora_unet_.+_(proj_in|proj_out|transformer_blocks_\d+_.+)$",
    "unet-convblock-only": r"^lora_unet_(conv_in|conv_out|.+(resnets|samplers)_.+"
    r"|.+_(in_layers|out_layers|emb_layers)_\d|.+_skip_connection|.+_0_op|.+_conv)$",
    "ia3": r"(attn[12]_to_[kv]|ff_net_2|[kv]_proj|mlp_fc2)$",
}
INPUTS_OF_IA3 = ("ff_net_2", "mlp_fc2")


@functools.cache
def trees(version: str) -> tuple[nn.Module, list[nn.Module]]:
    """A U-Net and text encoders of full size under kohya's names, without any numbers."""
    config = model_config(version)
    with torch.device("meta"):
        unet, encoders = make_unet(config["unet"]), make_text_encoders(config)
    return unet_view(unet), [text_view(encoder) for encoder in encoders]


def names(version: str, preset: str) -> dict[str, nn.Module]:
    """The layers that are trained, by the names of their modules."""
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    unet, encoders = trees(version)
    network = Plugin.create(
        load_plugin("lycoris.kohya"), "lycoris.kohya", encoders, unet,
        dim=1, alpha=1.0, dropout=None, arguments={"algo": "ia3" if preset == "ia3" else "locon", "preset": preset},
    ).module  # fmt: skip
    return {lora.lora_name: lora.org_module[0] for lora in network.loras}


@pytest.mark.parametrize("version", COUNTS)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_what_its_name_says(version: str, preset: str) -> None:
    found = names(version, preset)
    unet = [name for name in found if name.startswith("lora_unet_")]
    large = [name for name in unet if getattr(found[name], "kernel_size", (1, 1)) != (1, 1)]
    assert (len(unet), len(large), len(found) - len(unet)) == COUNTS[version][preset]
    assert [name for name in found if not re.search(PATTERNS.get(preset, ""), name)] == []
    prefixes = {name.split("_")[1] for name in found}
    texts = set() if preset.startswith("unet") else {"te"} if version == "sd1" else {"te1", "te2"}
    assert prefixes == {"unet"} | texts


def test_full_is_everything_that_has_a_weight_to_multiply_with() -> None:
    """Of SDXL the first and last layers and the embeddings are left out, whose names are others there."""
    for version in COUNTS:
        unet, _ = trees(version)
        every = {
            f"lora_unet_{name}".replace(".", "_")
            for name, module in unet.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d))
        }
        left = every - set(names(version, "full"))
        outer = ("input_blocks_0_0", "out_2", "time_embed_0", "time_embed_2", "label_emb_0_0", "label_emb_0_2")
        assert left == ({f"lora_unet_{name}" for name in outer} if version == "sdxl" else set())


def test_ia3_scales_the_inputs_of_the_last_layers_and_the_outputs_of_the_others() -> None:
    unet, encoders = trees("sd1")
    arguments = {"algo": "ia3", "preset": "ia3"}
    code = load_plugin("lycoris.kohya")
    network = Plugin.create(code, "x", encoders, unet, dim=1, alpha=1.0, dropout=None, arguments=arguments).module
    for lora in network.loras:
        assert lora.train_input == lora.lora_name.endswith(INPUTS_OF_IA3)
