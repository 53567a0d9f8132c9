"""Networks merged into a model, layer by layer: nothing larger than one layer is ever in memory."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sd_scripts.schema.errors import UserError
from sd_scripts.tools.common import Ticker, say
from sd_scripts.tools.files import refuse_existing
from sd_scripts.tools.lora.merge import ENDINGS, VERSIONS, Source, listed
from sd_scripts.tools.report import report

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sd_scripts.models.modules import ModelFile

    Change = tuple[Tensor | None, Tensor | None]
    Plan = dict[str, list[tuple[Source, str]]]

_FORGET_EVERY = 32


@dataclass(frozen=True)
class Settings:
    """How the result is computed and saved.

    Attributes:
        precision: format that the result is rounded to.
        saving: format of the file.
        device: where it is computed.
        bare: without modelspec notes.
        overwrite: the target may be there.
        key: option that names the target, for messages.
    """

    precision: torch.dtype
    saving: torch.dtype
    device: torch.device
    bare: bool = False
    overwrite: bool = False
    key: str = "save_to"


def merge_into_model(model_path: Path, sources: Sequence[Source], target: Path, settings: Settings) -> str:
    """Write the model again with the networks in it, complete or not at all; returns "sd1", "sd2" or "sdxl".

    Raises:
        UserError: a network fits nowhere, is for another kind of model or not finite, or the target cannot be written.
    """
    from sd_scripts.models.modules import open_model, rewrite

    with open_model(model_path, "sd_model") as model:
        _check_target(model, target, settings)
        say(f"into {model_path}, {VERSIONS[model.version]}")
        plan = planned(model, sources)
        layers = _Layers(model, plan, settings)
        metadata = None if model.path.is_dir() else _notes(model, sources, target, settings.bare)
        with report.writing(target), layers.running():
            rewrite(model, target, layers.take, plan, settings.saving, metadata)
    report.phase("layers", len(plan), len(plan))
    say(f"{len(plan)} layers changed, the model is written to {target}")
    return model.version


def planned(model: ModelFile, sources: Sequence[Source]) -> Plan:
    """Layer of the model -> the networks' modules for it, in the order given.

    Raises:
        UserError: a network is made for another kind of model, or has nothing for this one.
    """
    plan: Plan = {}
    for source in sources:
        file = source.file
        if file.version and file.version != model.version:
            raise UserError(
                f"{file.path} is made for {VERSIONS[file.version]}, but {model.path} is {VERSIONS[model.version]}.",
                "models",
            )
        without: list[str] = []
        for module in file:
            layer = layer_of(module, model)
            if layer is None:
                without.append(module)
            else:
                plan.setdefault(layer, []).append((source, module))
        if len(without) == len(file.modules):
            raise UserError(
                f"{file.path} has nothing that fits {model.path}: it has no layer {without[0]}.",
                "models",
                "The network is for another kind of model.",
            )
        if without:
            say(f"note: {model.path} has no layer for {listed(without, f'modules of {file.path}')}; they are left out")
    return plan


def layer_of(module: str, model: ModelFile) -> str | None:
    """The model's layer of a module; SDXL's U-Net has two spellings."""
    if module in model.places:
        return module
    if model.version != "sdxl":
        return None
    from sd_scripts.networks.names import sgm_name

    other = sgm_name(module)
    return other if other in model.places else None


class _Layers:
    """Computes the changed layers on all cores, a few ahead of the writer, in the order of the file."""

    def __init__(self, model: ModelFile, plan: Plan, settings: Settings) -> None:
        import torch

        self._model, self._plan, self._settings = model, plan, settings
        self._working = torch.float64 if settings.precision == torch.float64 else torch.float32
        self._room = max((prod(model.places[layer].shape) for layer in plan), default=0)
        self._local = threading.local()
        self._ready: dict[str, Change] = {}
        self._ticker = Ticker("layers", len(plan))
        self._done = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around the calls of `take`."""
        from sd_scripts.tools.lora.device import in_parallel

        order = _file_order(self._model, self._plan)
        self._results = in_parallel(self._computed, order, self._settings.device)
        try:
            yield
        finally:
            cast("Generator[object]", self._results).close()  # what is still computed ahead is not wanted any more

    def take(self, layer: str) -> Change:
        """New weight and bias of a layer."""
        while layer not in self._ready:
            name, change = next(self._results)
            self._ready[name] = change
        self._ticker.at(self._done)
        self._done += 1
        if self._done % _FORGET_EVERY == 0:
            for source in {id(source): source for parts in self._plan.values() for source, _ in parts}.values():
                source.file.forget()
        return self._ready.pop(layer)

    def _computed(self, layer: str) -> tuple[str, Change]:
        from sd_scripts.networks.changes import Misfit, add_lora, changed, is_plain_lora

        weight, bias = self._weight(layer), self._bias(layer)
        for source, module in self._plan[layer]:
            tensors, strength = source.file.tensors(module), source.strength(module)
            try:
                if is_plain_lora(tensors):
                    weight = add_lora(tensors, weight, strength)
                else:
                    weight, bias = changed(tensors, weight, bias, strength, source.file.kind(module))
            except Misfit as error:
                raise UserError(
                    f"{source.file.path}: {module} {error}.", "models", "The network is for another kind of model."
                ) from error
        self._require_finite(weight, layer)
        return layer, (self._rounded(weight), None if bias is None else self._rounded(bias))

    def _weight(self, layer: str) -> Tensor:
        """A copy of a layer's weight, in memory that the thread uses again: new pages cost as much as the product."""
        import torch

        stored = self._model.weight(layer)
        if not hasattr(self._local, "room"):
            self._local.room = torch.empty(self._room, dtype=self._working, device=self._settings.device)
        return self._local.room[: stored.numel()].view(stored.shape).copy_(stored)

    def _bias(self, layer: str) -> Tensor | None:
        stored = self._model.bias(layer)
        return None if stored is None else stored.to(self._settings.device, self._working)

    def _rounded(self, value: Tensor) -> Tensor:
        rounded = value.to(self._settings.precision).to("cpu", self._settings.saving)
        return rounded.clone() if rounded.data_ptr() == value.data_ptr() else rounded

    def _require_finite(self, weight: Tensor, layer: str) -> None:
        """Raises UserError for a result that is not finite, or too large for the format it is saved in."""
        import torch

        low, high = torch.aminmax(weight)
        largest = max(-float(low), float(high))
        if not largest <= torch.finfo(torch.float64).max:
            for source, module in self._plan[layer]:
                source.require_finite(module)
            raise UserError(
                f"{self._model.path}: {self._model.places[layer].weight} is not finite (NaN or infinity).",
                "sd_model",
                "The model is damaged.",
            )
        if largest > min(torch.finfo(self._settings.precision).max, torch.finfo(self._settings.saving).max):
            raise UserError(
                f"The merged weight of {layer} reaches {largest:g}, more than the number format of the result holds.",
                "save_precision",
                "Choose bf16 or float, or lower ratios.",
            )


def _file_order(model: ModelFile, plan: Plan) -> list[str]:
    """The layers in the order in which a writer of sorted files comes by them."""

    def first_key(layer: str) -> tuple[str, str]:
        place = model.places[layer]
        key = min(key for key in (place.weight, place.bias) if key is not None)
        return (key.partition("/")[0] if model.path.is_dir() else "", key)

    return sorted(plan, key=first_key)


def _notes(model: ModelFile, sources: Sequence[Source], target: Path, bare: bool) -> dict[str, str]:
    """Text entries for a single file."""
    if bare:
        return {}
    from sd_scripts.tools.lora.notes import kind_from, spec_notes

    kind = {**kind_from(model.version), "v_param": model.stored.prediction == "v_prediction"}
    return spec_notes(target, kind, [model.path, *(source.file.path for source in sources)], adapter=None)


def _check_target(model: ModelFile, target: Path, settings: Settings) -> None:
    """Raises UserError where the target is of another form than the model, or is there already."""
    if model.path.is_dir():
        if target.suffix in ENDINGS:
            raise UserError(
                f"{settings.key} is {target}, a file, but {model.path} is a folder.",
                settings.key,
                "Give a folder, or convert the model to one file first.",
            )
        if target.is_file():
            raise UserError(f"{settings.key} is {target}, which is a file; a folder is written.", settings.key)
    elif target.suffix not in ENDINGS:
        raise UserError(f"{settings.key} is {target}, but must end in {', '.join(ENDINGS)}.", settings.key)
    refuse_existing([target], settings.overwrite)
