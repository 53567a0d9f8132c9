"""Modules from a configuration and a state dictionary, without ever filling them with random numbers first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sd_scripts.models.part import Origin, Part
from sd_scripts.schema.errors import UserError

TextEncoder: TypeAlias = CLIPTextModel | CLIPTextModelWithProjection


@dataclass
class LoadedModel:
    """The parts of a Stable Diffusion 1.x, 2.x or XL model.

    Attributes:
        unet: takes latents [B, 4, h, w], timesteps [B] and text [B, T, C]; XL also pooled text and sizes.
        text_encoders: CLIP's text tower, 12 layers (sd1) or 23 (sd2); XL has that of sd1 and OpenCLIP's with 32.
        vae: pictures [B, 3, 8h, 8w] in -1..1 <-> latents [B, 4, h, w].
        tokenizers: CLIP's, one a text encoder, padded as it wants it.
        version: "sd1", "sd2" or "sdxl".
        prediction_type: "epsilon" or "v_prediction".
        from_single_file: read from an original single file, not from a diffusers folder.
        source: what was asked for, for messages and metadata.
        origin: what else the source held.
    """

    unet: UNet2DConditionModel
    text_encoders: list[TextEncoder]
    vae: AutoencoderKL
    tokenizers: list[CLIPTokenizer]
    version: str
    prediction_type: str
    from_single_file: bool = False
    source: str = ""
    notes: list[str] = field(default_factory=list)
    origin: Origin = field(default_factory=Origin)

    @property
    def text_encoder(self) -> TextEncoder:
        """The first text encoder."""
        return self.text_encoders[0]

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The first text encoder's tokenizer."""
        return self.tokenizers[0]


def without_marks(config: Mapping[str, Any]) -> dict[str, Any]:
    """A diffusers config without its `_class_name`, `_diffusers_version`, `_name_or_path` entries."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def make_unet(config: Mapping[str, Any]) -> UNet2DConditionModel:
    """A U-Net of `config` on the current default device (the meta device allocates nothing)."""
    return UNet2DConditionModel.from_config(without_marks(config))


def make_vae(config: Mapping[str, Any]) -> AutoencoderKL:
    """A VAE of `config` on the current default device."""
    return AutoencoderKL.from_config(without_marks(config))


def make_text_encoder(config: Mapping[str, Any]) -> CLIPTextModel:
    """A CLIP text tower of `config` on the current default device."""
    return CLIPTextModel(_text_config(config))


def make_projected_text_encoder(config: Mapping[str, Any]) -> CLIPTextModelWithProjection:
    """A CLIP text tower with its projection, SDXL's second one, on the current default device."""
    return CLIPTextModelWithProjection(_text_config(config))


def _text_config(config: Mapping[str, Any]) -> CLIPTextConfig:
    known = {key: value for key, value in config.items() if key not in ("architectures", "torch_dtype", "dtype")}
    return CLIPTextConfig(**without_marks(known))


def make_text_encoders(config: Mapping[str, Mapping[str, Any]]) -> list[TextEncoder]:
    """The text encoders of a whole model's configuration, one or two, on the current default device."""
    first: list[TextEncoder] = [make_text_encoder(config["text_encoder"])]
    return [*first, make_projected_text_encoder(config["text_encoder_2"])] if "text_encoder_2" in config else first


def text_core(text_encoder: nn.Module) -> nn.Module:
    """The module with `embeddings`, `encoder` and `final_layer_norm`; older transformers keep it a level down."""
    return text_encoder.text_model if hasattr(text_encoder, "text_model") else text_encoder


def fill(module: nn.Module, weights: Mapping[str, Tensor], what: str, source: str) -> None:
    """Give a module made on the meta device its weights, which become its own without being copied.

    Args:
        module: made under `torch.device("meta")`.
        weights: by the module's own names.
        what: "U-Net", "text encoder" or "VAE", for the message.
        source: the file or folder, for the message.

    Raises:
        UserError: a weight is missing, one too many, or has another shape. Nothing is ever left random.
    """
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in weights]
    extra = [key for key in weights if key not in wanted]
    wrong = [key for key in wanted if key in weights and wanted[key].shape != weights[key].shape]
    for names, problem in ((missing, "lacks"), (extra, "has unknown"), (wrong, "has other shapes for")):
        if names:
            raise UserError(
                f"The {what} in {source} {problem} {len(names)} of {len(wanted)} weights (first: {names[0]}).",
                key="pretrained_model_name_or_path" if what != "VAE" else None,
                hint="The file is damaged, or it is another kind of model.",
            )
    module.load_state_dict(weights, strict=True, assign=True)
    _fill_buffers(module)


def _fill_buffers(module: nn.Module) -> None:
    """Recreate the counting buffers that no file carries (CLIP's position numbers)."""
    for owner in module.modules():
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if not buffer.is_meta:
                continue
            if name != "position_ids":
                raise RuntimeError(f"buffer {name} of {type(owner).__name__} has no value")
            owner.register_buffer(name, torch.arange(buffer.shape[-1]).expand(tuple(buffer.shape)), persistent=False)


def filled(make: Callable[[Mapping[str, Any]], Any], part: Part, what: str, source: str) -> Any:
    """`make` with the part's config on the meta device, filled with its weights, in evaluation mode.

    Raises UserError as `fill`.
    """
    with torch.device("meta"):
        module = make(part.config)
    fill(module, part.weights, what, source)
    return module.eval()
