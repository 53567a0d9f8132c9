"""ControlNet-LLLite: small networks before the attention of SDXL's first half, which look at a control picture.

Each one changes what a query, key or value layer sees: from the layer's input and from what the control picture shows
at the same place it computes a correction, which is added to the input. Corrections start at zero. The names and shapes
are those of the published files (`lllite_unet_<path>.<tensor>`), so that other programs read them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_scripts.networks.base import read_weights
from sd_scripts.schema.errors import UserError

PREFIX = "lllite_unet"
_TARGET = re.compile(
    r"(?:input_blocks\.(?P<number>\d+)|middle_block)\..*\.transformer_blocks\.\d+\.(?:attn1\.to_[qkv]|attn2\.to_q)"
)
_MLP_KEY = ".down.0.weight"
_EMBEDDING_KEY = ".conditioning1.0.weight"


def depth_of(path: str) -> int | None:
    """How many halvings below the latents a layer of SDXL's U-Net works, from 1 for none; None for other layers.

    Args:
        path: the layer's module path in the original layout.
    """
    match = _TARGET.fullmatch(path)
    if match is None:
        return None
    return 3 if match["number"] is None else min(int(match["number"]) // 3 + 1, 3)


def _picture_layers(depth: int, width: int) -> nn.Sequential:
    """Convolutions from a picture [B, 3, H, W] to its signs [B, width, H/s, W/s], s = 8, 16 or 32 for depth 1 to 3."""
    half = width // 2
    sizes = {1: ((width, 2),), 2: ((width, 4),), 3: ((half, 4), (width, 2))}[depth]
    layers: list[nn.Module] = [nn.Conv2d(3, half, kernel_size=4, stride=4)]
    for channels, size in sizes:
        layers += [nn.ReLU(), nn.Conv2d(half, channels, kernel_size=size, stride=size)]
    return nn.Sequential(*layers)


class LLLiteModule(nn.Module):
    """The correction of one layer's input.

    Attributes:
        depth: 1 to 3, see `depth_of`.
        signs: [B, T, cond_emb_dim], what the control picture shows at each place; None without a picture.
    """

    def __init__(self, width: int, depth: int, cond_emb_dim: int, mlp_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.depth = depth
        self.dropout = dropout
        self.conditioning1 = _picture_layers(depth, cond_emb_dim)
        self.down = nn.Sequential(nn.Linear(width, mlp_dim), nn.ReLU())
        self.mid = nn.Sequential(nn.Linear(mlp_dim + cond_emb_dim, mlp_dim), nn.ReLU())
        up = nn.Linear(mlp_dim, width)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.up = nn.Sequential(up)
        self.signs: Tensor | None = None

    def look(self, picture: Tensor, latent_size: tuple[int, int]) -> None:
        """Work out what the control picture [B, 3, H, W] shows at each place of latents of this height and width."""
        signs = self.conditioning1(picture)
        factor = 2 ** (self.depth - 1)
        size = tuple(-(-side // factor) for side in latent_size)  # the U-Net rounds up where a side is odd
        if signs.shape[-2:] != size:
            signs = F.interpolate(signs.float(), size, mode="bilinear").to(signs.dtype)
        self.signs = signs.flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """The correction for a layer's input [B, T, width]; B may be a multiple of the pictures' number."""
        if self.signs is None:
            raise RuntimeError("no control picture has been looked at")
        own = self.down(x)
        signs = self.signs.repeat(x.shape[0] // self.signs.shape[0], 1, 1).to(own.dtype)
        mixed = self.mid(torch.cat([signs, own], dim=2))
        return self.up(F.dropout(mixed, self.dropout, self.training))


class LLLiteNetwork(nn.Module):
    """The corrections of all layers; its state dictionary is the file.

    Until `look` is called, and after `forget`, the U-Net works as without it.

    Attributes:
        multiplier: strength of the corrections.
    """

    def __init__(
        self, unet: nn.Module, cond_emb_dim: int, mlp_dim: int, dropout: float | None = None, multiplier: float = 1.0
    ) -> None:
        """Make the network for a U-Net and put it in.

        Args:
            unet: SDXL's U-Net under its original names (a view of it).
            cond_emb_dim: size of what is kept of the picture at each place; even.
            mlp_dim: width of the small networks.
            dropout: chance of each of their inner values to be left out while training.
            multiplier: strength of the corrections.

        Raises:
            UserError: cond_emb_dim is odd or too small, or the U-Net has no layer to correct.
        """
        super().__init__()
        if cond_emb_dim < 2 or cond_emb_dim % 2:
            raise UserError(
                f"cond_emb_dim is {cond_emb_dim}, but half of it is needed too.",
                "cond_emb_dim",
                "Choose an even number.",
            )
        self.multiplier = multiplier
        self._sizes = (cond_emb_dim, mlp_dim)
        for path, layer in unet.named_modules():
            depth = depth_of(path)
            if depth is not None and isinstance(layer, nn.Linear):
                module = LLLiteModule(layer.in_features, depth, cond_emb_dim, mlp_dim, dropout or 0.0)
                self.add_module(f"{PREFIX}_{path.replace('.', '_')}", module)
                layer.forward = self._corrected(module, layer.forward)
        if not any(True for _ in self.children()):
            raise UserError("ControlNet-LLLite fits Stable Diffusion XL only.", "pretrained_model_name_or_path")

    def _corrected(self, module: LLLiteModule, plain: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            return plain(x) if module.signs is None else plain(x + module(x) * self.multiplier)

        return forward

    def corrections(self) -> Iterator[LLLiteModule]:
        """The small networks, one a layer."""
        return (module for module in self.children() if isinstance(module, LLLiteModule))

    def look(self, picture: Tensor, latent_size: tuple[int, int]) -> None:
        """Steer what follows by control pictures, each looked at once by every layer's network.

        Args:
            picture: [B, 3, H, W] in -1..1.
            latent_size: height and width of the latents that are steered.
        """
        weight = next(self.parameters())
        picture = picture.to(weight.device, weight.dtype)
        for module in self.corrections():
            module.look(picture, latent_size)

    def forget(self) -> None:
        """Steer no more; the pictures' tensors are let go of."""
        for module in self.corrections():
            module.signs = None

    def load(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Fill in a file's weights. Raises UserError naming the first that is missing, unknown or of another size."""
        wanted = self.state_dict()
        for names, problem in (
            ([key for key in wanted if key not in weights], "lacks"),
            ([key for key in weights if key not in wanted], "has unknown"),
            ([key for key in wanted if key in weights and wanted[key].shape != weights[key].shape], "differs in"),
        ):
            if names:
                raise UserError(
                    f"The LLLite file {source} {problem} {len(names)} of {len(wanted)} weights (first: {names[0]}).",
                    "network_weights",
                    f"cond_emb_dim {self._sizes[0]} and network_dim {self._sizes[1]} were expected.",
                )
        self.load_state_dict(dict(weights), strict=True)


def read_lllite(path: str | Path) -> tuple[dict[str, Tensor], int, int]:
    """An LLLite file's weights, its cond_emb_dim and its mlp_dim. Raises UserError when it is something else."""
    weights = read_weights(path)
    mlp = next((value for key, value in weights.items() if key.endswith(_MLP_KEY)), None)
    embedding = next((value for key, value in weights.items() if key.endswith(_EMBEDDING_KEY)), None)
    if mlp is None or embedding is None or not all(key.startswith(PREFIX) for key in weights):
        raise UserError(
            f"'{path}' is no ControlNet-LLLite.", "network_weights", "Choose a file that this trainer has written."
        )
    return weights, embedding.shape[0] * 2, mlp.shape[0]
