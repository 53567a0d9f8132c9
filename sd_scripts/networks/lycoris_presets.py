"""Which layers LyCORIS' presets train, on the module trees that our trainers hand it.

LyCORIS' own tables name classes of two dozen model families, and its `ia3` matches no layer of any. Names are matched
from their beginning, or as patterns of file names where `use_fnmatch` is set.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.lycoris import PRESETS
from sd_scripts.schema.suggest import nearest

_TRANSFORMER = ["Transformer2DModel"]
_CONVOLUTIONS = ["ResnetBlock2D", "Downsample2D", "Upsample2D"]
_ENDS = ["conv_in", "conv_out"]
_TIME = ["time_embedding.linear_1", "time_embedding.linear_2"]
_TEXT = ["CLIPAttention", "CLIPMLP"]


def _preset(
    unet_modules: list[str], unet_names: list[str], text_modules: list[str], convolutions: bool
) -> dict[str, Any]:
    return {
        "enable_conv": convolutions,
        "unet_target_module": unet_modules,
        "unet_target_name": unet_names,
        "text_encoder_target_module": text_modules,
        "text_encoder_target_name": [],
    }


# On SDXL none of the U-Net's names exists in kohya's spelling, so that only the modules count and the first and last
# layers and the embeddings stay out, as with LyCORIS on sd-scripts.
_TABLES: Mapping[str, Mapping[str, Any]] = {
    "full": _preset(_TRANSFORMER + _CONVOLUTIONS, _ENDS + _TIME, _TEXT, True),
    "full-lin": _preset([*_TRANSFORMER, "ResnetBlock2D"], _TIME, _TEXT, False),
    "attn-mlp": _preset(_TRANSFORMER, [], _TEXT, False),
    "attn-only": _preset(["CrossAttention"], [], ["CLIPAttention"], False),
    "unet-only": _preset(_TRANSFORMER + _CONVOLUTIONS, _ENDS + _TIME, [], True),
    "unet-transformer-only": _preset(_TRANSFORMER, [], [], False),
    "unet-convblock-only": _preset(_CONVOLUTIONS, _ENDS, [], True),
    "ia3": {
        "enable_conv": False,
        "use_fnmatch": True,
        "unet_target_module": [],
        "unet_target_name": ["*.to_k", "*.to_v", "*.ff.net.2"],
        "text_encoder_target_module": [],
        "text_encoder_target_name": ["*.k_proj", "*.v_proj", "*.mlp.fc2"],
        "name_algo_map": {"*.mlp.fc2": {"train_on_input": True}, "*.ff.net.2": {"train_on_input": True}},
    },
}
_LISTS = (
    "unet_target_module", "unet_target_name", "text_encoder_target_module", "text_encoder_target_name", "exclude_name",
)  # fmt: skip
_MAPS = ("module_algo_map", "name_algo_map")
_SWITCHES = ("enable_conv", "use_fnmatch")
# For programs other than kohya's; a file may have them.
_OTHERS = ("target_module", "target_name", "lora_prefix")
# Classes of diffusers and transformers that people write into their files, what kohya's trainers have in their place,
# and what, if listed as well, trains the same layers already.
_CLASS_NAMES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Attention": ("CrossAttention", ("CrossAttention", "Transformer2DModel", "BasicTransformerBlock")),
    "TimestepEmbedding": ("TimeEmbeddingLayers", ("time_embedding",)),
    "CLIPSdpaAttention": ("CLIPAttention", ("CLIPAttention",)),
}


def preset(name: str) -> dict[str, Any]:
    """The table of a known preset, or of a TOML file.

    Raises:
        UserError: neither; or the file cannot be read, or holds something else.
    """
    if name in _TABLES:
        return dict(_TABLES[name])
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"LyCORIS preset '{name}' is neither a known preset nor a file.",
            "network_args",
            hint=f"{nearest(name, PRESETS)} Known: {', '.join(PRESETS)}.".strip(),
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"The LyCORIS preset '{name}' cannot be read: {error}.", "network_args") from error
    return _checked(name, table)


def _checked(name: str, table: dict[str, Any]) -> dict[str, Any]:
    """The table with every entry of its own type, and classes under the names that they have here."""

    def wrong(key: str, wanted: str) -> UserError:
        return UserError(f"In the LyCORIS preset '{name}', {key} is no {wanted}.", "network_args")

    for key, value in table.items():
        if key in _LISTS and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise wrong(key, "list of names")
        if key in _MAPS and not (isinstance(value, dict) and all(isinstance(item, dict) for item in value.values())):
            raise wrong(key, "table of tables")
        if key in _SWITCHES and not isinstance(value, bool):
            raise wrong(key, "switch (true or false)")
        if key not in (*_LISTS, *_MAPS, *_SWITCHES, *_OTHERS):
            hint = nearest(key, (*_LISTS, *_MAPS, *_SWITCHES))
            raise UserError(f"The LyCORIS preset '{name}' has an unknown entry {key}.", "network_args", hint)
    for key, names in (("unet_target_module", "unet_target_name"), ("text_encoder_target_module", "")):
        if key in table:
            listed = [*table[key], *table.get(names, _TIME)]
            table[key] = [item for item in (_class_name(item, listed) for item in table[key]) if item]
    if "module_algo_map" in table:
        renamed = {_CLASS_NAMES.get(key, (key,))[0]: item for key, item in table["module_algo_map"].items()}
        table["module_algo_map"] = renamed
    return table


def _class_name(name: str, listed: list[str]) -> str:
    """What a class is called here; nothing where its layers are trained through another entry."""
    here, others = _CLASS_NAMES.get(name, (name, ()))
    return "" if any(entry.startswith(others) for entry in listed if entry != name and others) else here
