"""Kohya's OFT (orthogonal finetuning, arXiv 2306.07280) for the U-Net: what a layer puts out is turned, block by block.

`network_dim` is the number of blocks of each layer, and `network_alpha` times a layer's outputs limits its turn.
Files hold `oft_unet_<name>.oft_blocks` [blocks, size, size] and `.alpha`; `changes_oft` says what they mean.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sd_scripts.networks.arguments import checked, given_weights, stand_in_dropout, switch
from sd_scripts.networks.change_module import ChangeModule
from sd_scripts.networks.change_network import ChangeNetwork, Settings, chosen, modules_in
from sd_scripts.networks.changes_oft import rotation
from sd_scripts.networks.lora import UNET_CONV_TARGETS, UNET_TARGETS, is_sdxl
from sd_scripts.networks.lora_arguments import DEFAULT_ALPHA, DEFAULT_DIM, LoRASizes
from sd_scripts.schema.errors import UserError

logger = logging.getLogger(__name__)

NAME = "networks.oft"
KNOWN = ("enable_all_linear", "enable_conv")
PREFIX = "oft_unet"
# Read by the trainer, which then leaves the text encoders as they are in memory.
HAS_TEXT_ENCODERS = False
ATTENTION = ("CrossAttention",)
BLOCKS = "oft_blocks"


class OFTModule(ChangeModule):
    """Turns the outputs of one layer; its bias is added unturned.

    `lora_dim` is the number of blocks; `scale` is no scale here, but the limit: alpha times the outputs.
    """

    kind = "oft"

    def __init__(self, lora_name: str, org_module: nn.Linear | nn.Conv2d, number: int, alpha: float) -> None:
        super().__init__(lora_name, org_module, lora_dim=number, alpha=alpha)
        self.scale = self.scale_for_alpha(alpha)

    def _make_layers(self, layer: nn.Linear | nn.Conv2d) -> None:
        outputs = layer.weight.shape[0]
        if outputs % self.lora_dim:
            raise UserError(
                f"network_dim {self.lora_dim} is OFT's number of blocks and does not divide the {outputs} outputs of "
                f"{self.lora_name}.",
                "network_dim",
                hint="Powers of two up to 64 divide every layer of Stable Diffusion.",
            )
        size = outputs // self.lora_dim
        self.oft_blocks = nn.Parameter(torch.zeros(self.lora_dim, size, size))

    def scale_for_alpha(self, alpha: float) -> float:
        """How large the norm of the skew part may be; 0 for no limit."""
        return alpha * self.oft_blocks.shape[0] * self.oft_blocks.shape[1]

    def turn(self) -> Tensor:
        """R - I of each block, in float32."""
        blocks = self.oft_blocks.float()
        return rotation(blocks, self.scale) - torch.eye(blocks.shape[-1], device=blocks.device)

    def _added(self, x: Tensor, base: Tensor) -> Tensor:
        """What turning adds to the layer's output `base`, whose bias it leaves out."""
        turn = self.turn()
        number, size, _ = turn.shape
        shape = base.shape
        if base.dim() == 4:
            rows = base.view(shape[0], number, size, -1)
            added = torch.einsum("bkip,kij->bkjp", rows, turn.to(base.dtype)).reshape(shape)
        else:
            rows = base.reshape(-1, number, size).transpose(0, 1)
            added = torch.bmm(rows, turn.to(base.dtype)).transpose(0, 1).reshape(shape)
        bias = self.org_module.bias
        if bias is None:
            return added
        turned = torch.einsum("ki,kij->kj", bias.detach().float().view(number, size), turn).flatten()
        return added - turned.to(base.dtype).view(-1, *([1] * (base.dim() - 2) if base.dim() == 4 else []))

    def _each_sample(self, x: Tensor, factor: float) -> float | Tensor:
        """The multiplier alone: alpha is a limit here, and no scale."""
        return super()._each_sample(x, 1.0)

    def delta(self, multiplier: float | Tensor | None = None) -> Tensor:
        """What turning adds to the layer's weight, in float32 and in its shape."""
        weight = self.org_module.weight.detach().float()
        number, size = self.oft_blocks.shape[:2]
        turned = self.turn().detach().mT @ weight.reshape(number, size, -1)
        return turned.view(weight.shape) * (self.multiplier if multiplier is None else multiplier)


class OFTNetwork(ChangeNetwork):
    """OFT modules for the U-Net; the text encoders are left alone."""

    name = NAME
    tensors = (BLOCKS, "alpha")
    unet_prefix = PREFIX
    # A turn keeps the norm of a weight, so there is nothing to limit.
    apply_max_norm_regularization = None  # type: ignore[assignment]

    def __init__(self, unet: nn.Module | None, multiplier: float, sizes: LoRASizes, targets: tuple[str, ...]) -> None:
        # The base class asks for the targets.
        self._targets = targets
        super().__init__(None, unet, multiplier, Settings(chosen(sizes)))

    def unet_targets(self) -> tuple[str, ...]:
        """The classes of the U-Net's blocks whose layers are looked at."""
        return self._targets

    def make_module(self, name: str, layer: nn.Module, dim: int, alpha: float) -> OFTModule:
        """The module for one layer. Raises UserError when the blocks do not divide its outputs."""
        return OFTModule(name, layer, dim, alpha)


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: object,
    text_encoder: nn.Module | Sequence[nn.Module] | None,
    unet: nn.Module | None,
    neuron_dropout: float | None = None,
    **kwargs: Any,
) -> OFTNetwork:
    """A new network; `kwargs` are the network_args as texts. Raises UserError for a bad argument."""
    given = checked(kwargs, NAME, KNOWN)
    if stand_in_dropout(kwargs, NAME, neuron_dropout):
        logger.warning("network_dropout has no effect on %s.", NAME)
    dim = DEFAULT_DIM if network_dim is None else int(network_dim)
    alpha = DEFAULT_ALPHA if network_alpha is None else network_alpha
    if dim < 1:
        raise UserError(f"network_dim is OFT's number of blocks and must be at least 1, not {dim}.", "network_dim")
    if alpha <= 0:
        raise UserError(f"network_alpha limits how far OFT turns and must be above 0, not {alpha}.", "network_alpha")
    targets: tuple[str, ...] = UNET_TARGETS if switch(given, "enable_all_linear") else ATTENTION
    if switch(given, "enable_conv"):
        targets += UNET_CONV_TARGETS
    # Convolutions have as many blocks as the others.
    sizes = LoRASizes(dim, alpha, dim, alpha, sdxl=is_sdxl(unet))
    return OFTNetwork(unet, multiplier, sizes, targets)


def create_network_from_weights(
    multiplier: float,
    file: str | Path | None,
    vae: object,
    text_encoder: nn.Module | Sequence[nn.Module] | None,
    unet: nn.Module | None,
    weights_sd: dict[str, Tensor] | None = None,
    for_inference: bool = False,
    **kwargs: Any,
) -> tuple[OFTNetwork, dict[str, Tensor]]:
    """A network with the blocks and limits of a file, not yet filled with its weights; and the weights."""
    checked(kwargs, NAME, KNOWN, ("neuron_dropout",))
    weights = given_weights(file, weights_sd)
    by_name: dict[str, tuple[int, float]] = {}
    for name in modules_in(weights, file, NAME, OFTNetwork.tensors):
        blocks = weights.get(f"{name}.{BLOCKS}")
        if blocks is None:
            raise UserError(f"'{file}' has no {BLOCKS} for {name}.", "network_weights")
        by_name[name] = (blocks.shape[0], float(weights.get(f"{name}.alpha", DEFAULT_ALPHA)))
    sizes = LoRASizes(by_name=by_name, sdxl=is_sdxl(unet))
    return OFTNetwork(unet, multiplier, sizes, UNET_TARGETS + UNET_CONV_TARGETS), weights
