"""Training a ControlNet-LLLite for Stable Diffusion XL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sd_scripts.families.base import Conditioning, Family, Guide, Model
from sd_scripts.methods.base import Method, ScalarNames, freeze
from sd_scripts.methods.control_picture import read_control_picture
from sd_scripts.networks.base import ParameterGroup
from sd_scripts.networks.lllite import LLLiteNetwork, read_lllite
from sd_scripts.sampling.prompts import SamplePrompt
from sd_scripts.schema.controlnet import LLLiteOptions
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.network import NetworkOptions
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.tensorfile import write_weights

# What the method's author recommends; used where neither the options nor a file to go on from say otherwise.
MLP_DIM = 64
COND_EMB_DIM = 32


class LLLiteMethod(Method):
    """Small networks in a frozen U-Net that follow a control picture.

    Control pictures go in as -1..1, as the data sets bring them.
    """

    needs_control_images = True
    notes: Literal["all", "modelspec", "none"] = "modelspec"
    adapter: str | None = "lllite"
    project = "lllite_control_net_train"
    scalar_names = ScalarNames(rate="lr")

    def __init__(
        self,
        network: NetworkOptions,
        lllite: LLLiteOptions,
        optimizer: OptimizerOptions,
        file_format: str | None = None,
    ) -> None:
        self.network = network
        self.lllite = lllite
        self.optimizer = optimizer
        self._format = file_format or "safetensors"
        self._net: LLLiteNetwork | None = None

    @property
    def module(self) -> LLLiteNetwork:
        """The network; its state dictionary carries the file's names."""
        if self._net is None:
            raise RuntimeError("the network is not attached to a model yet")
        return self._net

    @property
    def trains_unet(self) -> bool:
        """The U-Net itself is frozen, its layers are steered."""
        return True

    @property
    def trains_text_encoder(self) -> bool:
        """Captions are only read."""
        return False

    @property
    def file_format(self) -> str:
        """Safetensors, ckpt or pt, as asked for."""
        return self._format

    def required_files(self) -> list[tuple[str, str]]:
        """The file to go on from."""
        return [("network_weights", self.network.network_weights)] if self.network.network_weights else []

    def attach(
        self,
        model: Model,
        family: Family,
        *,
        gradient_checkpointing: bool,
        weight_dtype: torch.dtype,
        network_dtype: torch.dtype = torch.float32,
    ) -> None:
        """Freeze the model, make or read the network, and put it in.

        Raises:
            UserError: network_weights does not fit, or the model is no SDXL.
        """
        freeze(model)
        view = family.views(model).unet
        source = self.network.network_weights
        if source:
            weights, cond_emb_dim, mlp_dim = read_lllite(source)
            self._check_sizes(source, cond_emb_dim, mlp_dim)
            net = LLLiteNetwork(view, cond_emb_dim, mlp_dim, self.network.network_dropout)
            net.load(weights, source)
        else:
            cond_emb_dim = self.lllite.cond_emb_dim or COND_EMB_DIM
            net = LLLiteNetwork(view, cond_emb_dim, self.network.network_dim or MLP_DIM, self.network.network_dropout)
        net.to(next(model.unet.parameters()).device, network_dtype)
        if gradient_checkpointing:
            model.unet.train()
        net.train()
        self._net = net

    def _check_sizes(self, source: str, cond_emb_dim: int, mlp_dim: int) -> None:
        """Where a file to go on from is given, options that say something else are a mistake."""
        for key, asked, found in (
            ("cond_emb_dim", self.lllite.cond_emb_dim, cond_emb_dim),
            ("network_dim", self.network.network_dim, mlp_dim),
        ):
            if asked is not None and asked != found:
                raise UserError(
                    f"{key} is {asked}, but {source} was made with {found}.", key, "Leave it out: the file says it."
                )

    def parameter_groups(self) -> list[ParameterGroup]:
        """One group with all of the network. Raises UserError when its rate is 0."""
        rate = self.optimizer.learning_rate
        if not rate:
            raise UserError("The learning rate is 0, so nothing would be trained.", "learning_rate", "Try 2e-4.")
        return [ParameterGroup("lllite", list(self.module.parameters()), rate)]

    def on_step_start(self, multipliers: Tensor | None, step: int) -> None:
        """Let go of the last batch's pictures."""
        self.module.forget()

    def before_predict(self, conditioning: Conditioning, batch: Any, noisy: Tensor, timesteps: Tensor) -> Conditioning:
        """Look at the batch's control pictures; the conditioning itself stays as it is."""
        pictures = batch.conditioning_images
        if pictures is None:
            raise UserError(
                "A batch came without control pictures.",
                "conditioning_data_dir",
                "Name the folder of control pictures for every subset.",
            )
        self.module.look(pictures, (noisy.shape[-2], noisy.shape[-1]))
        return conditioning

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """No dropout, and nothing steers that was not asked for; the modes are as before afterwards."""
        self.module.forget()
        try:
            with super().evaluation():
                yield
        finally:
            self.module.forget()

    @contextmanager
    def guide(self, prompt: SamplePrompt, device: torch.device, dtype: torch.dtype) -> Iterator[Guide | None]:
        """Steer a sample picture by the prompt's control picture (`--cn`); without one it is made as it comes.

        Raises:
            UserError: the control picture cannot be read.
        """
        picture = read_control_picture(prompt)
        with self.evaluation():
            if picture is not None:
                with torch.no_grad():
                    self.module.look(picture, (prompt.height // 8, prompt.width // 8))
            yield None

    def save(
        self,
        path: str | Path,
        dtype: torch.dtype | None,
        metadata: dict[str, str] | None,
        *,
        epoch: int = 0,
        step: int = 0,
    ) -> None:
        """Write the network by its files' names, with the notes of the model specification."""
        write_weights(path, self.module.state_dict(), dtype, metadata)
