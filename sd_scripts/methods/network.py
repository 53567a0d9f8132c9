"""Training a network (a LoRA or a relative) on a frozen model."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sd_scripts.families.base import Family, Model, Views
from sd_scripts.methods.base import Method, freeze
from sd_scripts.networks.base import ParameterGroup
from sd_scripts.networks.plugin import Plugin, load_plugin, parse_network_args
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.network import NetworkOptions
from sd_scripts.schema.optimizer import OptimizerOptions

logger = logging.getLogger(__name__)

DEFAULT_MODULE = "networks.lora"
# Networks every parameter of which takes part in each step.
_WHOLE = ("networks.lora", "networks.lora_fa", "networks.oft", "networks.loha", "networks.lokr")
FLOAT8 = tuple(getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name))


def _stored_in_8_bits(module: nn.Module) -> bool:
    return any(parameter.dtype in FLOAT8 for parameter in module.parameters())


class NetworkMethod(Method):
    """A network on top of a model: made, filled, attached, trained and saved.

    The model's own weights are frozen. `trains_unet` and `trains_text_encoder` follow the options: a part
    whose learning rate is 0 keeps its modules (a loaded network stays whole) but gets no gradients.
    """

    notes: Literal["all", "modelspec", "none"] = "all"
    adapter: str | None = "lora"

    def __init__(
        self,
        options: NetworkOptions,
        optimizer: OptimizerOptions,
        allow_plugins: bool = False,
        file_format: str | None = None,
    ) -> None:
        if options.network_train_unet_only and options.network_train_text_encoder_only:
            raise UserError(
                "network_train_unet_only and network_train_text_encoder_only exclude each other.",
                "network_train_unet_only",
            )
        if options.dim_from_weights and not options.network_weights:
            raise UserError("dim_from_weights needs network_weights to take the ranks from.", "dim_from_weights")
        name = options.network_module or DEFAULT_MODULE
        self.name = name.removeprefix("sd_scripts.")
        self.options = options
        self.optimizer = optimizer
        self._format = file_format or "safetensors"
        self.arguments = parse_network_args(options.network_args)
        self._code = load_plugin(name, allow_plugins)
        self._plugin: Plugin | None = None
        self._prepared: nn.Module | None = None

    @property
    def plugin(self) -> Plugin:
        """The attached network's plug."""
        if self._plugin is None:
            raise RuntimeError("the network is not attached to a model yet")
        return self._plugin

    @property
    def module(self) -> nn.Module:
        """The network, whose state dict is the training state."""
        return self.plugin.module

    @property
    def file_format(self) -> str:
        """ "safetensors", "ckpt" or "pt", as asked for."""
        return self._format

    @property
    def may_leave_out(self) -> bool:
        """Module dropout leaves modules out, DyLoRA ranks, and a foreign network may."""
        return self.name not in _WHOLE or "module_dropout" in self.arguments

    @property
    def trains_unet(self) -> bool:
        """Whether the U-Net's part of the network is trained."""
        rate = self.optimizer.learning_rate if self.optimizer.unet_lr is None else self.optimizer.unet_lr
        return not self.options.network_train_text_encoder_only and rate != 0

    @property
    def trains_text_encoder(self) -> bool:
        """Whether the text encoder's part of the network is trained."""
        if not getattr(self._code, "HAS_TEXT_ENCODERS", True):
            return False
        rates = self.optimizer.text_encoder_lr or [self.optimizer.learning_rate]
        return not self.options.network_train_unet_only and any(rate != 0 for rate in rates)

    def required_files(self) -> list[tuple[str, str]]:
        """The network to go on from, and those that are merged first."""
        weights = [("network_weights", self.options.network_weights)] if self.options.network_weights else []
        return [*weights, *(("base_weights", path) for path in self.options.base_weights or [])]

    def prepare_model(self, model: Model, family: Family, weight_dtype: torch.dtype) -> None:
        """Merge the base networks, once. Raises UserError for a file that does not fit."""
        if self._prepared is model.unet:
            return
        # What is stored in 8 bits stays so: its layers were prepared for it.
        dtype = None if _stored_in_8_bits(model.unet) else weight_dtype
        if self.options.base_weights or self.options.base_weights_multiplier:
            self._merge_base_networks(family.views(model), model.vae, dtype)
        self._prepared = model.unet

    def attach(
        self,
        model: Model,
        family: Family,
        *,
        gradient_checkpointing: bool,
        weight_dtype: torch.dtype,
        network_dtype: torch.dtype = torch.float32,
    ) -> None:
        """Merge the base networks, freeze the model, make the network and put it in.

        Args:
            model: the loaded model, on its device.
            family: gives the model's names.
            gradient_checkpointing: whether the model recomputes activations; it needs training mode for that.
            weight_dtype: the dtype that the frozen model is kept in.
            network_dtype: the dtype of the network's own weights; lower than float32 only for full_fp16/bf16.

        Raises:
            UserError: for a network, file or argument that does not fit.
        """
        self.prepare_model(model, family, weight_dtype)
        views = family.views(model)
        freeze(model)
        plugin = self._make(views, model.vae)
        plugin.apply(not self.options.network_train_unet_only, not self.options.network_train_text_encoder_only)
        if self.options.network_weights:
            logger.info("%s: %s", self.options.network_weights, plugin.load(self.options.network_weights))
        plugin.module.to(next(model.unet.parameters()).device, network_dtype)
        if gradient_checkpointing:
            # Both libraries recompute without re-entering autograd, so the embeddings may stay frozen.
            model.unet.train()
            for encoder in model.text_encoders if self.trains_text_encoder else ():
                encoder.train()
            plugin.call_if_there("enable_gradient_checkpointing")
        self._plugin = plugin
        if self.options.scale_weight_norms and not plugin.can_limit_norms:
            raise UserError(f"network_module '{self.name}' cannot limit its norms.", "scale_weight_norms")

    def _make(self, views: Views, vae: nn.Module) -> Plugin:
        options = self.options
        common = (self._code, self.name, views.text_encoders, views.unet)
        if options.dim_from_weights and options.network_weights:
            arguments = {**self.arguments, "neuron_dropout": options.network_dropout}
            return Plugin.from_weights(*common, options.network_weights, arguments=arguments, vae=vae)[0]
        return Plugin.create(
            *common,
            dim=options.network_dim,
            alpha=options.network_alpha,
            dropout=options.network_dropout,
            arguments=self.arguments,
            vae=vae,
        )

    def _merge_base_networks(self, views: Views, vae: nn.Module, dtype: torch.dtype | None) -> None:
        """Add each of `base_weights` to the model, times its multiplier (1 where none is given)."""
        paths = self.options.base_weights or []
        multipliers = list(self.options.base_weights_multiplier or [])
        if len(multipliers) > len(paths):
            raise UserError(
                f"base_weights_multiplier has {len(multipliers)} numbers for {len(paths)} base_weights.",
                "base_weights_multiplier",
            )
        multipliers += [1.0] * (len(paths) - len(multipliers))
        for path, multiplier in zip(paths, multipliers):
            plugin, weights = Plugin.from_weights(
                self._code,
                self.name,
                views.text_encoders,
                views.unet,
                path,
                multiplier=multiplier,
                for_inference=True,
                vae=vae,
            )
            plugin.merge_into(weights, multiplier, dtype, None)
            logger.info("merged %s into the model, times %s", path, multiplier)

    def parameter_groups(self) -> list[ParameterGroup]:
        """The network's groups at the rates of the optimizer options. Raises UserError when nothing trains."""
        return self.plugin.parameter_groups(
            self.optimizer.unet_lr, self.optimizer.text_encoder_lr, self.optimizer.learning_rate
        )

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Every parameter that a step may change."""
        return self.plugin.trainable_parameters()

    def on_epoch_start(self) -> None:
        """Dropouts on, and whatever else the network does at the start of an epoch."""
        self.module.train()
        self.plugin.call_if_there("on_epoch_start")

    def on_step_start(self, multipliers: torch.Tensor | None, step: int) -> None:
        """Set the strength of this batch's samples ([B], None means 1) before anything is computed."""
        self.plugin.set_multiplier(1.0 if multipliers is None else multipliers)
        self.plugin.call_if_there("on_step_start")

    def after_step(self) -> dict[str, float] | None:
        """Limit the norms when `scale_weight_norms` asks for it; figures about them."""
        # Samples and validation come between two steps, and want the network at full strength.
        self.plugin.set_multiplier(1.0)
        maximum = self.options.scale_weight_norms
        if not maximum:
            return None
        return self.plugin.limit_norms(maximum, next(self.module.parameters()).device)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """For samples and validation: full strength and no dropout inside, every module as before afterwards."""
        self.plugin.set_multiplier(1.0)
        with super().evaluation():
            yield

    def save(
        self,
        path: str | Path,
        dtype: torch.dtype | None,
        metadata: dict[str, str] | None,
        *,
        epoch: int = 0,
        step: int = 0,
    ) -> None:
        """Write the network, complete or not at all; the suffix names the format."""
        self.plugin.save(path, dtype, metadata)

    def metadata(self) -> dict[str, str]:
        """The `ss_network_*` entries; `ss_network_args` only when arguments were given."""
        options = self.options
        entries = {
            "ss_network_module": self.name,
            "ss_network_dim": str(options.network_dim),
            "ss_network_alpha": str(options.network_alpha),
            "ss_network_dropout": str(options.network_dropout),
            "ss_scale_weight_norms": str(options.scale_weight_norms),
        }
        if options.network_args:
            arguments: dict[str, Any] = dict(self.arguments)
            arguments.setdefault("dropout", options.network_dropout)
            entries["ss_network_args"] = json.dumps(arguments)
        return entries
