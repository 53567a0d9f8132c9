"""A model of six layers that LyCORIS finds its targets in, and networks on it, for the tests of its settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sd_scripts.networks.plugin import Plugin, load_plugin

NAME = "lycoris.kohya"


class Transformer2DModel(nn.Module):
    """What a preset looks for in the U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, 16)
        self.proj_in = nn.Conv2d(16, 16, 1)
        self.to_q = nn.Linear(16, 32)
        self.to_out = nn.Linear(32, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        return x + self.to_out(torch.tanh(self.to_q(y))).transpose(1, 2).view(x.shape)


class ResnetBlock2D(nn.Module):
    """The other thing that a preset looks for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.conv(x))


class CLIPMLP(nn.Module):
    """And in a text encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc1(x))


class Toy(nn.Module):
    """A U-Net and a text encoder in one; always the same."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.unet = nn.Sequential(ResnetBlock2D(), Transformer2DModel())
            self.text = nn.Sequential(CLIPMLP())
            for norm in (module for module in self.modules() if isinstance(module, nn.GroupNorm)):
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.unet(x + self.text(x.mean((2, 3)))[:, :, None, None])


X = torch.randn(3, 16, 4, 4, generator=torch.Generator().manual_seed(2))


def made(toy: Toy, algo: str, settings: dict[str, str], dim: int = 2, **more: Any) -> Plugin:
    """A network that is in the model."""
    arguments = {"algo": algo, **settings}
    plugin = Plugin.create(
        load_plugin(NAME), NAME, [toy.text], toy.unet, dim=dim, alpha=3.0, dropout=None, arguments=arguments, **more
    )
    plugin.apply(True, True)
    return plugin


def trained(plugin: Plugin, run: Callable[[], Tensor], steps: int = 3) -> None:
    """A few steps towards zero."""
    groups = plugin.parameter_groups(None, None, 0.02)
    optimizer = torch.optim.Adam([{"params": group.params, "lr": group.lr} for group in groups])
    plugin.module.train()
    for _ in range(steps):
        plugin.call_if_there("on_step_start")
        run().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
