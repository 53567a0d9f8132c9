"""Networks merged into a model, layer by layer: nothing larger than one layer is ever in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from sd_scripts.schema.errors import UserError
from sd_scripts.tools.common import Ticker, say
from sd_scripts.tools.files import refuse_existing
from sd_scripts.tools.lora.merge import ENDINGS, VERSIONS, Source, listed
from sd_scripts.tools.models.writing import written, written_folder
from sd_scripts.tools.report import report

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sd_scripts.models.modules import ModelFile

    Change = tuple[Tensor | None, Tensor | None]
    Plan = dict[str, list[tuple[Source, str]]]

_FORGET_EVERY = 32
_AHEAD = 4  # layers computed before the writer asks for them


@dataclass(frozen=True)
class Settings:
    """How the result is computed and saved.

    Attributes:
        precision: format that the result is rounded to.
        saving: format of the file; None for that of the model, weight by weight.
        device: where it is computed.
        bare: without modelspec notes.
        hint: how the result is used, for its notes.
        overwrite: the target may be there.
        key: option that names the target, for messages.
    """

    precision: torch.dtype
    saving: torch.dtype | None
    device: torch.device
    bare: bool = False
    hint: str | None = None
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
        layers = _Layers(model, plan, settings, _written_order(model, plan, target))
        metadata = _notes(model, sources, target, settings) if target.suffix == ".safetensors" else None
        with layers.running():
            if target.suffix in ENDINGS:
                with written(target):
                    rewrite(model, target, layers.take, plan, settings.saving, metadata)
            else:
                with written_folder(target) as tell:
                    rewrite(model, target, layers.take, plan, settings.saving, finish=tell)
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
    """The model's layer of a module: SDXL's U-Net has two spellings, and a single text encoder may be numbered."""
    if module in model.places:
        return module
    if model.version != "sdxl":
        other = module.replace("lora_te1_", "lora_te_", 1)
        return other if other in model.places else None
    from sd_scripts.networks.names import sgm_name

    other = sgm_name(module)
    return other if other in model.places else None


class _Layers:
    """Computes the changed layers on all cores, a few ahead of the writer."""

    def __init__(self, model: ModelFile, plan: Plan, settings: Settings, order: Sequence[str]) -> None:
        import torch

        self._model, self._plan, self._settings = model, plan, settings
        self._order = list(order)
        self._places = {layer: number for number, layer in enumerate(self._order)}
        self._working = torch.float64 if settings.precision == torch.float64 else torch.float32
        self._room = max((prod(model.places[layer].shape) for layer in plan), default=0)
        self._local = threading.local()
        self._started: set[str] = set()
        self._waiting: dict[str, Future[Change]] = {}
        self._ticker = Ticker("layers", len(plan))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around the calls of `take`."""
        import torch

        from sd_scripts.tools.lora.device import one_thread_each

        # layers are too small for torch to share one among threads well
        threads = torch.get_num_threads()
        cores = threads if self._settings.device.type == "cpu" else 1
        with one_thread_each(threads), ThreadPoolExecutor(cores) as self._pool:
            try:
                yield
            finally:
                self._pool.shutdown(cancel_futures=True)

    def take(self, layer: str) -> Change:
        """New weight and bias of a layer."""
        place = self._places[layer]
        for coming in (layer, *self._order[place + 1 : place + 1 + _AHEAD]):
            # a layer may be asked for again: files of version 2 hold the last text layer twice
            if coming not in self._started or (coming == layer and layer not in self._waiting):
                self._started.add(coming)
                self._waiting[coming] = self._pool.submit(self._computed, coming)
        change = self._waiting.pop(layer).result()
        done = len(self._started) - len(self._waiting)
        self._ticker.at(done)
        if done % _FORGET_EVERY == 0:
            for file in {id(source): source.file for parts in self._plan.values() for source, _ in parts}.values():
                file.forget()
        return change

    def _computed(self, layer: str) -> Change:
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
        saving = self._settings.saving or self._model.dtype(layer)
        self._require_finite(weight, layer, saving)
        return self._rounded(weight, saving), None if bias is None else self._rounded(bias, saving)

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

    def _rounded(self, value: Tensor, saving: torch.dtype) -> Tensor:
        rounded = value.to(self._settings.precision).to("cpu", saving)
        return rounded.clone() if rounded.data_ptr() == value.data_ptr() else rounded

    def _require_finite(self, weight: Tensor, layer: str, saving: torch.dtype) -> None:
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
        if largest > min(torch.finfo(self._settings.precision).max, torch.finfo(saving).max):
            raise UserError(
                f"The merged weight of {layer} reaches {largest:g}, more than the number format of the result holds.",
                "save_precision",
                "Choose bf16 or float, or lower ratios.",
            )


def _written_order(model: ModelFile, plan: Plan, target: Path) -> list[str]:
    """The layers in about the order in which the writer comes by them: part by part, sorted by key."""
    from sd_scripts.networks.names import unet_layers

    to_file = model.path.is_dir() and target.suffix in ENDINGS
    originals = {path: original for original, path in unet_layers(model.version).items()} if to_file else {}

    def first_key(layer: str) -> tuple[str, str]:
        place = model.places[layer]
        if to_file:
            return place.part, originals.get(place.path, place.path)
        key = min(key for key in (place.weight, place.bias) if key is not None)
        return (place.part if model.path.is_dir() else "", key)

    return sorted(plan, key=first_key)


def _notes(model: ModelFile, sources: Sequence[Source], target: Path, settings: Settings) -> dict[str, str]:
    """Text entries for a single file."""
    if settings.bare:
        return {}
    from sd_scripts.tools.lora.notes import kind_from, spec_notes

    kind = {**kind_from(model.version), "v_param": model.stored.prediction == "v_prediction"}
    notes = spec_notes(target, kind, [model.path, *(source.file.path for source in sources)], adapter=None)
    return notes | ({"modelspec.usage_hint": settings.hint} if settings.hint else {})


def _check_target(model: ModelFile, target: Path, settings: Settings) -> None:
    """Raises UserError where the target cannot be written as it is named, or is there already."""
    if target.suffix in ENDINGS:
        if target.is_dir():
            raise UserError(f"{settings.key} is {target}, which is a folder.", settings.key, "Give a file.")
    elif not model.path.is_dir():
        raise UserError(f"{settings.key} is {target}, but must end in {', '.join(ENDINGS)}.", settings.key)
    elif target.is_file():
        raise UserError(f"{settings.key} is {target}, which is a file; a folder is written.", settings.key)
    refuse_existing([target], settings.overwrite)
