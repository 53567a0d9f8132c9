"""Networks merged into a model, layer by layer: nothing larger than one layer is ever in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sd_scripts.schema.errors import UserError
from sd_scripts.tools.common import Ticker, say
from sd_scripts.tools.files import refuse_existing
from sd_scripts.tools.lora.merge import ENDINGS, VERSIONS, Source, listed
from sd_scripts.tools.report import report

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sd_scripts.models.modules import ModelFile

Change = tuple["Tensor | None", "Tensor | None"]


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
        ticker = Ticker("layers", len(plan))
        change = _changer(model, plan, settings, ticker)
        metadata = None if model.path.is_dir() else _notes(model, sources, target, settings.bare)
        with report.writing(target):
            rewrite(model, target, change, plan, settings.saving, metadata)
    report.phase("layers", len(plan), len(plan))
    say(f"{len(plan)} layers changed, the model is written to {target}")
    return model.version


def planned(model: ModelFile, sources: Sequence[Source]) -> dict[str, list[tuple[Source, str]]]:
    """Layer of the model -> the networks' modules for it, in the order given.

    Raises:
        UserError: a network is made for another kind of model, or has nothing for this one.
    """
    plan: dict[str, list[tuple[Source, str]]] = {}
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


def _changer(
    model: ModelFile, plan: dict[str, list[tuple[Source, str]]], settings: Settings, ticker: Ticker
) -> Callable[[str], Change]:
    import torch

    from sd_scripts.networks.changes import Misfit, changed

    working = torch.float64 if settings.precision == torch.float64 else torch.float32
    done = 0

    def change(layer: str) -> Change:
        nonlocal done
        ticker.at(done)
        done += 1
        weight = model.weight(layer).to(settings.device, working)
        bias = model.bias(layer)
        new_bias = None if bias is None else bias.to(settings.device, working)
        for source, module in plan[layer]:
            tensors = source.tensors(module)
            strength = source.strength(module)
            try:
                weight, new_bias = changed(tensors, weight, new_bias, strength, source.file.kind(module))
            except Misfit as error:
                raise UserError(
                    f"{source.file.path}: {module} {error}.", "models", "The network is for another kind of model."
                ) from error
            source.file.forget()
        _require_finite(weight, layer, model, settings)
        return weight.to("cpu", settings.precision), None if new_bias is None else new_bias.to(
            "cpu", settings.precision
        )

    return change


def _require_finite(weight: Tensor, layer: str, model: ModelFile, settings: Settings) -> None:
    """Raises UserError for a result that is not finite, or too large for the format it is saved in."""
    import torch

    low, high = torch.aminmax(weight)
    largest = max(-float(low), float(high))
    if not largest <= torch.finfo(torch.float64).max:
        raise UserError(
            f"{model.path}: the weight of {layer} is not finite (NaN or infinity).", "sd_model", "The file is damaged."
        )
    narrow = min(torch.finfo(settings.precision).max, torch.finfo(settings.saving).max)
    if largest > narrow:
        raise UserError(
            f"The merged weight of {layer} reaches {largest:g}, more than the number format of the result can hold.",
            "save_precision",
            "Choose bf16 or float, or lower ratios.",
        )


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
