"""Training a ControlNet for Stable Diffusion 1.x or 2.x: the model is frozen, a copy of its first half learns."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sd_scripts.families.base import Conditioning, Family, Guide, Model
from sd_scripts.methods.base import Method, ScalarNames, freeze
from sd_scripts.methods.control_picture import read_control_picture, repeat_to
from sd_scripts.models.attention import use_attention
from sd_scripts.models.controlnet import control_to_original, load_controlnet, make_controlnet
from sd_scripts.models.fp8 import FP8
from sd_scripts.networks.base import ParameterGroup
from sd_scripts.sampling.prompts import SamplePrompt
from sd_scripts.schema.controlnet import ControlNetOptions
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.tensorfile import write_weights

logger = logging.getLogger(__name__)


class ControlNetMethod(Method):
    """A ControlNet beside a frozen model: made or read, trained, and saved in the original layout.

    Control pictures go in as 0..1, which is how every program feeds a ControlNet; the data sets bring them as -1..1.
    """

    needs_control_images = True
    notes: Literal["all", "modelspec", "none"] = "none"
    adapter: str | None = "controlnet"
    project = "controlnet_train"
    scalar_names = ScalarNames(rate="lr")

    def __init__(
        self, controlnet: ControlNetOptions, optimizer: OptimizerOptions, file_format: str | None = None
    ) -> None:
        self.options = controlnet
        self.optimizer = optimizer
        self._format = file_format or "safetensors"
        self._net: Any = None
        self._version = "sd1"

    @property
    def module(self) -> nn.Module:
        """The ControlNet, in diffusers' names."""
        if self._net is None:
            raise RuntimeError("the ControlNet is not attached to a model yet")
        net: nn.Module = self._net
        return net

    @property
    def trains_unet(self) -> bool:
        """The U-Net is frozen; gradients only pass through it."""
        return False

    @property
    def trains_text_encoder(self) -> bool:
        """Captions are only read."""
        return False

    @property
    def file_format(self) -> str:
        """Safetensors, ckpt or pt, as asked for."""
        return self._format

    def attach(
        self,
        model: Model,
        family: Family,
        *,
        gradient_checkpointing: bool,
        weight_dtype: torch.dtype,
        network_dtype: torch.dtype = torch.float32,
    ) -> None:
        """Freeze the model and make or read the ControlNet.

        Raises:
            UserError: controlnet_model_name_or_path names no ControlNet for this model.
        """
        unet: Any = model.unet
        freeze(model)
        source = self.options.controlnet_model_name_or_path
        if source:
            net = load_controlnet(source, unet, network_dtype)
        else:
            if any(parameter.dtype == FP8 for parameter in model.unet.parameters()):
                logger.warning("the ControlNet starts as a copy of 8-bit weights; without fp8_base it starts exact")
            net = make_controlnet(unet, network_dtype)
        net.requires_grad_(True)
        chosen = model.extras.get("attention")
        use_attention(net, xformers=chosen == "xformers", mem_eff_attn=chosen == "mem_eff_attn")
        if gradient_checkpointing:
            model.unet.train()
            net.enable_gradient_checkpointing()
        net.train()
        self._net, self._version = net, model.version

    def parameter_groups(self) -> list[ParameterGroup]:
        """One group with all of the ControlNet. Raises UserError when its rate is 0."""
        rate = self.optimizer.learning_rate
        if not rate:
            raise UserError(
                "The learning rate is 0, so nothing would be trained.",
                "learning_rate",
                "1e-5 is usual for a ControlNet.",
            )
        return [ParameterGroup("controlnet", list(self.module.parameters()), rate)]

    def before_predict(self, conditioning: Conditioning, batch: Any, noisy: Tensor, timesteps: Tensor) -> Conditioning:
        """Add what the ControlNet says about the batch's control pictures."""
        pictures = batch.conditioning_images
        if pictures is None:
            raise UserError(
                "A batch came without control pictures.",
                "conditioning_data_dir",
                "Name the folder of control pictures for every subset.",
            )
        return self._controlled(conditioning, noisy, timesteps, pictures.to(noisy.device, noisy.dtype))

    def _controlled(
        self, conditioning: Conditioning, noisy: Tensor, timesteps: Tensor, pictures: Tensor
    ) -> Conditioning:
        """`pictures` [B, 3, 8h, 8w] in -1..1."""
        down, middle = self._net(
            noisy, timesteps, conditioning.hidden, controlnet_cond=(pictures + 1) / 2, return_dict=False
        )
        return replace(conditioning, residuals=(tuple(down), middle))

    @contextmanager
    def guide(self, prompt: SamplePrompt, device: torch.device, dtype: torch.dtype) -> Iterator[Guide | None]:
        """Steer a sample picture by the prompt's control picture (`--cn`); without one it is made as it comes.

        Raises:
            UserError: the control picture cannot be read.
        """
        picture = read_control_picture(prompt)
        if picture is None:
            yield None
            return
        picture = picture.to(device)

        def controlled(conditioning: Conditioning, noisy: Tensor, timesteps: Tensor) -> Conditioning:
            pictures = repeat_to(picture, noisy.shape[0]).to(noisy.dtype)
            with torch.autocast(noisy.device.type, dtype=dtype, enabled=dtype != torch.float32):
                return self._controlled(conditioning, noisy, timesteps, pictures)

        with self.evaluation():
            yield controlled

    def save(
        self,
        path: str | Path,
        dtype: torch.dtype | None,
        metadata: dict[str, str] | None,
        *,
        epoch: int = 0,
        step: int = 0,
    ) -> None:
        """Write the ControlNet in the original layout, which carries no metadata."""
        weights = control_to_original(self.module.state_dict(), linear=self._version == "sd2")
        write_weights(path, weights, dtype)
