"""ControlNets for Stable Diffusion 1.x and 2.x: made from a U-Net, or read from a file, a folder or the hub.

A ControlNet is a copy of the U-Net's first half that also sees a control picture; what it puts out is added to the
U-Net's skip connections and middle block. Files carry the original layout, without any prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from sd_scripts.models import convert, keymap
from sd_scripts.models import folder as folders
from sd_scripts.models.build import without_marks
from sd_scripts.models.folder import UNET_STEMS
from sd_scripts.models.weights import read_part, read_weights
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.unetnames import SD_UNET, UnetShape, unet_table

KEY = "controlnet_model_name_or_path"
# Whole ControlNet checkpoints of the first release keep the net beside the model that it was trained on.
CONTROL_PREFIX = "control_model."
HINT_LAYERS = 6  # convolutions of the control picture's way between the first and the last
_SHARED = ("time_embed.", "input_blocks.", "middle_block.")
# What a ControlNet must have in common with the U-Net that it steers.
_COMMON = ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim", "down_block_types")


def control_table(shape: UnetShape = SD_UNET) -> dict[str, str]:
    """Original -> diffusers module paths of a ControlNet."""
    table = {name: value for name, value in unet_table(shape).items() if name.startswith(_SHARED)}
    table |= {"input_blocks.0.0": "conv_in", "middle_block_out.0": "controlnet_mid_block"}
    table["input_hint_block.0"] = "controlnet_cond_embedding.conv_in"
    for layer in range(HINT_LAYERS):
        # A nonlinearity stands between two convolutions, so that every second place is taken.
        table[f"input_hint_block.{2 * layer + 2}"] = f"controlnet_cond_embedding.blocks.{layer}"
    table[f"input_hint_block.{2 * HINT_LAYERS + 2}"] = "controlnet_cond_embedding.conv_out"
    for block in range(shape.levels * (shape.layers + 1)):
        table[f"zero_convs.{block}.0"] = f"controlnet_down_blocks.{block}"
    return table


def control_from_original(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Original ControlNet names -> diffusers' names. Raises `convert.UnknownKeysError`."""
    return _renamed(weights, control_table())


def control_to_original(weights: Mapping[str, Tensor], *, linear: bool = False) -> dict[str, Tensor]:
    """diffusers' ControlNet names -> original names.

    Args:
        weights: a ControlNet's state dictionary.
        linear: store the attention blocks' projections as matrices, as files for Stable Diffusion 2.x have them.

    Raises:
        UnknownKeysError: it is no ControlNet.
    """
    return _renamed(convert.fit_projections(dict(weights), linear=linear), keymap.inverse(control_table()))


def _renamed(weights: Mapping[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    names = {key: keymap.translate(key, table) for key in weights}
    unknown = [key for key, name in names.items() if name is None]
    if unknown:
        raise convert.UnknownKeysError(unknown)
    return {str(names[key]): value for key, value in weights.items()}


def make_controlnet(unet: UNet2DConditionModel, dtype: torch.dtype = torch.float32) -> ControlNetModel:
    """A new ControlNet that leaves the U-Net's output as it is: a copy of its first half behind zeroed convolutions.

    The weights are of `dtype` on the U-Net's device, whatever the U-Net is kept in. Only the control picture's own
    layers are drawn from torch's random stream, on the CPU; filling the rest with numbers first would take seconds.
    """
    with torch.device("meta"):
        controlnet = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    source = unet.state_dict()
    fresh = _fresh_hint(controlnet.controlnet_cond_embedding)
    weights: dict[str, Tensor] = {}
    for name, wanted in controlnet.state_dict().items():
        if name.startswith("controlnet_cond_embedding."):
            weights[name] = fresh[name.removeprefix("controlnet_cond_embedding.")].to(unet.device, dtype)
        elif name.startswith("controlnet_"):
            weights[name] = torch.zeros(wanted.shape, device=unet.device, dtype=dtype)
        else:
            weights[name] = source[name].to(dtype, copy=True)
    controlnet.load_state_dict(weights, strict=True, assign=True)
    return controlnet


def _fresh_hint(layout: nn.Module) -> dict[str, Tensor]:
    """First weights of the control picture's layers, in torch's usual way; the last layer starts at zero."""
    weights: dict[str, Tensor] = {}
    for name, layer in layout.named_modules():
        if isinstance(layer, nn.Conv2d):
            made = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size)
            if name == "conv_out":
                nn.init.zeros_(made.weight)
                nn.init.zeros_(made.bias)
            weights |= {f"{name}.{key}": value for key, value in made.state_dict().items()}
    return weights


def load_controlnet(source: str, unet: UNet2DConditionModel, dtype: torch.dtype = torch.float32) -> ControlNetModel:
    """A ControlNet for `unet`, on its device.

    Args:
        source: a single file (original layout or diffusers' weights), a diffusers folder, or a hub id.
        unet: the U-Net that it will steer.
        dtype: of the weights.

    Raises:
        UserError: there is none, it is damaged, or it was made for another kind of model.
    """
    path = Path(source)
    if path.is_dir():
        config, weights = _folder(path)
    elif path.is_file():
        config, weights = _own_config(unet), _file(path)
    elif folders.is_hub_id(source):
        config, weights = _folder(folders.hub_folder(source, (), KEY))
    else:
        raise UserError(
            f"There is no ControlNet at {source}.",
            key=KEY,
            hint="Give a .safetensors, .ckpt or .pt file, a diffusers folder, or a hub id such as owner/model.",
        )
    _check_config(config, unet, source)
    with torch.device("meta"):
        controlnet = ControlNetModel.from_config(config)
    fitted = convert.fit_projections(weights, linear=bool(controlnet.config.use_linear_projection))
    _check_weights(controlnet, fitted, source)
    # A copy of each: tensors of a file are mapped from it, and these are trained.
    controlnet.load_state_dict(
        {name: value.to(unet.device, dtype, copy=True) for name, value in fitted.items()}, strict=True, assign=True
    )
    return controlnet


def _own_config(unet: UNet2DConditionModel) -> dict[str, Any]:
    with torch.device("meta"):
        made = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    return without_marks(made.config)


def _folder(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A diffusers folder of a ControlNet, or of a pipeline that has one."""
    inner = path / "controlnet" if (path / "controlnet" / "config.json").is_file() else path
    config = folders.read_config(inner, key=KEY)
    if config.get("_class_name", "ControlNetModel") != "ControlNetModel":
        raise UserError(f"{path} holds a {config['_class_name']}, not a ControlNet.", key=KEY)
    return without_marks(config), read_part(inner, UNET_STEMS, KEY)


def _file(path: Path) -> dict[str, Tensor]:
    weights = read_weights(path, KEY)
    weights = convert.with_prefix(weights, CONTROL_PREFIX) or weights
    if "controlnet_cond_embedding.conv_in.weight" in weights:
        return weights
    if "input_hint_block.0.weight" not in weights:
        raise UserError(
            f"{path} is not a ControlNet.", key=KEY, hint="Choose a ControlNet for Stable Diffusion 1.x or 2.x."
        )
    try:
        return control_from_original(weights)
    except convert.UnknownKeysError as error:
        raise UserError(
            f"The ControlNet in {path} has {len(error.keys)} weights of an unknown kind (first: {error.keys[0]}).",
            key=KEY,
            hint="It is not one for Stable Diffusion 1.x or 2.x.",
        ) from error


def _check_config(config: Mapping[str, Any], unet: UNet2DConditionModel, source: str) -> None:
    for name in _COMMON:
        theirs, ours = config.get(name), unet.config.get(name)
        if theirs is not None and _plain(theirs) != _plain(ours):
            raise UserError(
                f"The ControlNet in {source} does not fit the base model: its {name} is {_plain(theirs)}, "
                f"the model's is {_plain(ours)}.",
                key=KEY,
                hint="Choose a ControlNet and a model of the same version of Stable Diffusion.",
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _check_weights(controlnet: ControlNetModel, weights: Mapping[str, Tensor], source: str) -> None:
    wanted = controlnet.state_dict()
    missing = [key for key in wanted if key not in weights]
    extra = [key for key in weights if key not in wanted]
    for names, problem in ((missing, "lacks"), (extra, "has unknown")):
        if names:
            raise UserError(
                f"The ControlNet in {source} {problem} {len(names)} of {len(wanted)} weights (first: {names[0]}).",
                key=KEY,
                hint="The file is damaged, or made for another kind of model.",
            )
    wrong = [key for key in wanted if wanted[key].shape != weights[key].shape]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"The ControlNet in {source} does not fit the base model: {name} is {tuple(weights[name].shape)}, "
            f"and {tuple(wanted[name].shape)} was expected.",
            key=KEY,
            hint="Choose a ControlNet and a model of the same version of Stable Diffusion.",
        )
