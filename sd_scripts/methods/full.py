"""Training the model itself: the U-Net, and its text encoders where asked for (DreamBooth and fine-tuning)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from sd_scripts.families.base import Family, Model
from sd_scripts.methods.base import Method, ScalarNames
from sd_scripts.methods.block_rates import block_groups
from sd_scripts.networks.base import ParameterGroup
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.full import FullOptions
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.schema.saving import SavingOptions
from sd_scripts.schema.values import parse_block_rates
from sd_scripts.training.optimizers import CreatedOptimizer
from sd_scripts.training.rounding import use_stochastic_rounding

# Rules of optimizers that estimate one rate for everything, or keep a second set of weights.
_LOOKS_AT_ALL = ("one_rate", "schedule_free")


class FullMethod(Method):
    """The whole model is trained and written.

    What trains: the U-Net, unless its rate is 0 (then for SDXL it rests); of the text encoders none, all, or for SDXL
    each with a rate above 0. Frozen parts compute in the lower precision and are written exactly as they were read.

    Args:
        full: the options of full training.
        optimizer: gives the common learning rate.
        saving: gives the form of the result.
        trains_text: whether the text encoders train unless told otherwise (DreamBooth), or only when asked to
            (`train_text_encoder`).
        project: the name under which trackers keep the run.
        max_token_length: of the model options.

    Raises:
        UserError: block_lr cannot be read, or options exclude each other.
    """

    saves_whole_model = True
    adapter = None
    scalar_names = ScalarNames(loss="loss")

    def __init__(
        self,
        full: FullOptions,
        optimizer: OptimizerOptions,
        saving: SavingOptions,
        *,
        trains_text: bool = False,
        project: str = "finetuning",
        max_token_length: int | None = None,
    ) -> None:
        if full.no_token_padding and max_token_length:
            raise UserError(
                "no_token_padding and max_token_length exclude each other: captions in several parts must be filled.",
                "no_token_padding",
                "Leave one of them out.",
            )
        self.options, self.optimizer, self.saving = full, optimizer, saving
        self.project = project
        self._text_wanted = trains_text or full.train_text_encoder
        self._text_stop = full.stop_text_encoder_training
        if self._text_stop is not None and self._text_stop < 0:
            self._text_wanted = False
        self._block_rates = parse_block_rates(full.block_lr) if full.block_lr else None
        self._text_stopped = False
        self._module: nn.ModuleDict | None = None
        self._model: Model | None = None
        self._family: Family | None = None
        self._originals: dict[str, dict[str, Tensor]] = {}

    @property
    def module(self) -> nn.Module:
        """The trained parts, by name: "unet", "text_encoder1", "text_encoder2"."""
        if self._module is None:
            raise RuntimeError("full training is not attached to a model yet")
        return self._module

    @property
    def trains_unet(self) -> bool:
        """Whether the U-Net's own rate is above 0, or a block's is."""
        if self._block_rates is not None:
            return any(self._block_rates)
        return self.optimizer.learning_rate > 0

    @property
    def trains_text_encoder(self) -> bool:
        """Whether a text encoder trains, at this moment of the run."""
        return self._text_wanted and not self._text_stopped and any(self._text_rate(index) > 0 for index in (0, 1))

    @property
    def may_leave_out(self) -> bool:
        """CLIP's last layer is not always looked at, and the text encoder may stop in the middle of a run."""
        return self._text_wanted

    def _text_rate(self, index: int) -> float:
        """The rate of text encoder `index`; the common one where it has none of its own."""
        own = (self.options.learning_rate_te1, self.options.learning_rate_te2)[index]
        if own is None:
            own = self.options.learning_rate_te
        return self.optimizer.learning_rate if own is None else own

    def _trains_encoder(self, index: int) -> bool:
        return self._text_wanted and self._text_rate(index) > 0

    @property
    def file_format(self) -> str:
        """As asked for; else as the model was read, in safetensors only with `use_safetensors`."""
        if self.saving.save_model_as:
            return self.saving.save_model_as
        if self._model is None:
            raise RuntimeError("the form of the result is known once the model is there")
        if self._model.extras.get("from_single_file"):
            return "safetensors" if self.options.use_safetensors else "ckpt"
        return "diffusers_safetensors" if self.options.use_safetensors else "diffusers"

    def attach(
        self,
        model: Model,
        family: Family,
        *,
        gradient_checkpointing: bool,
        weight_dtype: torch.dtype,
        network_dtype: torch.dtype = torch.float32,
    ) -> None:
        """Set free what trains, in `network_dtype`; keep the rest frozen in `weight_dtype`.

        Raises:
            UserError: nothing is to be trained, or block_lr does not fit the model.
        """
        parts: dict[str, nn.Module] = {}
        if self.trains_unet:
            parts["unet"] = model.unet
        for index, encoder in enumerate(model.text_encoders):
            if self._trains_encoder(index):
                parts[f"text_encoder{index + 1}"] = encoder
        if not parts:
            raise UserError(
                "Nothing would be trained: every learning rate is 0.", "learning_rate", "For instance 1e-6 or 1e-5."
            )
        trained = set(parts.values())
        everything = {"unet": model.unet, "vae": model.vae}
        everything |= {f"text_encoder{index + 1}": encoder for index, encoder in enumerate(model.text_encoders)}
        for name, part in everything.items():
            part.requires_grad_(part in trained)
            part.train(part in trained)
            if part in trained:
                nn.Module.to(part, network_dtype)  # diffusers' own warns for nothing
            elif name == "vae":  # its precision was chosen when it was read
                self._keep(name, model.extras.get("vae_as_read", {}), part.dtype)
            else:
                self._keep(name, part.state_dict(), weight_dtype)
                nn.Module.to(part, weight_dtype)
        if gradient_checkpointing:
            model.unet.train()  # it recomputes in training mode only
        if self.options.no_token_padding:
            model.extras["token_padding"] = False
        self._module, self._model, self._family = nn.ModuleDict(parts), model, family

    def _keep(self, name: str, state: dict[str, Tensor], dtype: torch.dtype) -> None:
        """Remember for the file what a frozen part was read as, where it computes in another type."""
        if any(value.is_floating_point() and value.dtype != dtype for value in state.values()):
            self._originals[name] = {key: value.detach().cpu() for key, value in state.items()}

    def parameter_groups(self) -> list[ParameterGroup]:
        """The U-Net's parameters, in blocks where asked for, and those of each text encoder with a rate of its own.

        As in sd-scripts, U-Net and text encoder of SD share one group unless learning_rate_te is given.
        """
        model, family = self._attached()
        groups: list[ParameterGroup] = []
        rate = self.optimizer.learning_rate
        if self.trains_unet and self._block_rates is not None:
            groups += block_groups(family.views(model).unet, self._block_rates)
        elif self.trains_unet:
            groups.append(ParameterGroup("unet", list(model.unet.parameters()), rate))
        for index, encoder in enumerate(model.text_encoders):
            if not self._trains_encoder(index):
                continue
            parameters = list(encoder.parameters())
            if groups and len(model.text_encoders) == 1 and self.options.learning_rate_te is None:
                groups[0].params += parameters
            else:
                groups.append(ParameterGroup(f"text_encoder{index + 1}", parameters, self._text_rate(index)))
        return groups

    def prepare_optimizer(self, created: CreatedOptimizer) -> None:
        """Let bf16 weights be rounded stochastically, where asked for.

        Raises:
            UserError: for an optimizer that looks at all parameters at once; they are stepped one by one here.
        """
        if not self.options.stochastic_rounding:
            return
        if created.rules in _LOOKS_AT_ALL:
            raise UserError(
                f"stochastic_rounding does not go with {created.name}, which weighs all parameters together.",
                "stochastic_rounding",
                "Choose AdamW, AdamW8bit, Lion or AdaFactor, or leave it out.",
            )
        use_stochastic_rounding(created.optimizer)

    def _attached(self) -> tuple[Model, Family]:
        if self._model is None or self._family is None:
            raise RuntimeError("full training is not attached to a model yet")
        return self._model, self._family

    def on_epoch_start(self) -> None:
        """Training mode for what still trains."""
        self.module.train()
        if self._text_stopped:
            self._stop_text()

    def on_step_start(self, multipliers: Tensor | None, step: int) -> None:
        """Freeze the text encoder once `stop_text_encoder_training` steps are done."""
        if self._text_stop is not None and self._text_wanted and not self._text_stopped and step >= self._text_stop:
            self._stop_text()

    def _stop_text(self) -> None:
        self._text_stopped = True
        model, _ = self._attached()
        for encoder in model.text_encoders:
            encoder.eval().requires_grad_(False)
            for parameter in encoder.parameters():
                parameter.grad = None

    def save(
        self,
        path: str | Path,
        dtype: torch.dtype | None,
        metadata: dict[str, str] | None,
        *,
        epoch: int = 0,
        step: int = 0,
    ) -> None:
        """Write the whole model in `file_format`, complete or not at all. Raises OSError, UserError."""
        model, family = self._attached()
        with self._as_read(model):
            family.save(
                model,
                Path(path),
                file_format=self.file_format,
                dtype=dtype,
                metadata=metadata,
                epoch=epoch,
                step=step,
            )

    @contextmanager
    def _as_read(self, model: Model) -> Iterator[None]:
        """Frozen parts with the weights that they were read with, in the precision of the source."""
        parts = {f"text_encoder{index + 1}": encoder for index, encoder in enumerate(model.text_encoders)}
        parts |= {"unet": model.unet, "vae": model.vae}
        lowered = {name: parts[name].state_dict() for name in self._originals}
        try:
            for name, original in self._originals.items():
                parts[name].load_state_dict(original, assign=True)
            yield
        finally:
            for name, state in lowered.items():
                parts[name].load_state_dict(state, assign=True)
                parts[name].requires_grad_(False)
