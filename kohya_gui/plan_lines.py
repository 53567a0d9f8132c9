"""The plan in words: a few short lines about what trains on what, for how long, and what is written."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kohya_gui import machine
from kohya_gui.dataset_view import DatasetView
from kohya_gui.effective import Effective
from kohya_gui.estimate import Write, bytes_text, number_text, time_text
from kohya_gui.phrases import phrase, together
from sd_scripts.schema.steps import StepPlan
from sd_scripts.schema.values import trains_text_encoder

Values = Mapping[str, Any]
_FAMILIES = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sd2-v": "SD 2.x", "sdxl": "SDXL"}

_STEPS = {
    "collect captions": phrase("collect captions"),
    "choose sizes and encode": phrase("choose sizes and encode"),
}


def lines(
    what: Effective,
    dataset: DatasetView,
    length: StepPlan,
    written: Sequence[Write],
    expected: tuple[float, int] | None,
    *,
    counting: bool,
    timed: bool,
) -> list[tuple[str, str]]:
    """(label, text) pairs; a text is made of phrases with SIGN between.

    Args:
        what: the values, understood.
        dataset: the pictures found.
        length: steps and epochs.
        written: the files.
        expected: seconds, and from how many jobs they are known.
        counting: the pictures are still being looked through.
        timed: whether past jobs are known at all, so that not knowing is worth a word.
    """
    values = what.seen
    found = [("Training", together(_family(what), trains(what), _precision(values)))]
    found += _pictures(what, dataset, counting)
    if length.total_steps:
        found.append(("Length", _length(length)))
    found.append(("Rates", rates(what)))
    if length.total_steps and timed:
        found.append(("Time", _time(expected)))
    if written:
        found.append(("Writes", _writes(values, written)))
    return found + [("Note", note) for note in (what.built.notes if what.built else [])]


def _family(what: Effective) -> str:
    """The base model's family, with a mark if it predicts velocity."""
    name = _FAMILIES[what.family]
    return f"{name} (v)" if what.seen.get("v_parameterization") else name


def trains(what: Effective) -> str:
    """What the training changes, or makes."""
    values = what.seen
    if what.method == "full":
        return phrase("whole U-Net and text encoder") if trains_text_encoder(values) else phrase("whole U-Net")
    if what.method == "network":
        kind = "LoRA" if values.get("LoRA_type") in (None, "Standard") else str(values["LoRA_type"])
        return phrase("{kind} rank {n}", kind=kind, n=values["network_dim"]) if values.get("network_dim") else kind
    if what.method in ("embedding", "xti"):
        word, count = values.get("token_string") or "?", int(values.get("num_vectors_per_token") or 1)
        if what.method == "xti":
            return phrase("new word {word} with {n} vectors for each block", word=word, n=count)
        return phrase("new word {word} with {n} vectors", word=word, n=count)
    if what.method == "lllite":
        return phrase("ControlNet-LLLite rank {n}", n=values.get("network_dim") or 64)
    return "ControlNet"


def _precision(values: Values) -> str:
    chosen = str(values.get("mixed_precision") or "no")
    if machine.has_gpu():
        return phrase("{precision} on the GPU", precision={"no": phrase("32 bits")}.get(chosen, chosen))
    return phrase("{precision} on the processor", precision={"no": phrase("32 bits")}.get(chosen, chosen))


def _pictures(what: Effective, dataset: DatasetView, counting: bool) -> list[tuple[str, str]]:
    if counting:
        return [("Pictures", phrase("being counted"))]
    if dataset.unknown:
        return [("Pictures", phrase("from a class of somebody else, not counted"))]
    if not dataset.images:
        return []
    trained = [folder for folder in dataset.folders if not folder.regularisation]
    lonely = len(dataset.lonely)
    words = sum(folder.captions for folder in trained)
    sizes = phrase("1 bucket") if len(dataset.buckets) == 1 else phrase("{n} buckets", n=f"{len(dataset.buckets):,}")
    parts = [
        phrase("1 picture") if dataset.images == 1 else phrase("{n} pictures", n=f"{dataset.images:,}"),
        phrase("{n} with captions", n=f"{words:,}"),
        phrase("{n} showings an epoch", n=f"{dataset.shown:,}"),
        sizes,
        phrase("{n} with one picture", n=lonely) if lonely else "",
        phrase("{n} kept for validation", n=f"{dataset.aside:,}") if dataset.aside else "",
        phrase("{n} regularisation pictures", n=f"{dataset.regular:,}") if dataset.regular else "",
    ]
    matched = sum(picture.control is not None for folder in trained for picture in folder.pictures)
    if matched and any(folder.control_dir for folder in trained):
        total = sum(len(folder.pictures) for folder in trained)
        parts.append(
            phrase("{n} of {m} control pictures", n=matched, m=total)
            if what.method in ("controlnet", "lllite")
            else phrase("{n} of {m} masks", n=matched, m=total)
        )
    found = [("Pictures", together(*parts))]
    if what.built is not None and what.built.before:
        found.append(("First", together(*(_STEPS.get(step.name, step.name) for step in what.built.before))))
    return found


def _length(length: StepPlan) -> str:
    batch = length.total_batch_size
    return together(
        phrase("1 step") if length.total_steps == 1 else phrase("{n} steps", n=f"{length.total_steps:,}"),
        phrase("1 epoch of {m}", m=f"{length.steps_per_epoch:,}")
        if length.epochs == 1
        else phrase("{n} epochs of {m}", n=f"{length.epochs:,}", m=f"{length.steps_per_epoch:,}"),
        phrase("1 picture a step") if batch == 1 else phrase("{n} pictures a step", n=f"{batch:,}"),
    )


def rates(what: Effective) -> str:
    """The learning rate of each part that is trained, schedule and optimizer."""
    values = what.seen
    schedule = str(values.get("lr_scheduler_type") or values["lr_scheduler"]).replace("_", " ")
    return together(*_rates(what, values), schedule, str(values.get("optimizer_type") or "AdamW"))


def _rates(what: Effective, values: Values) -> list[str]:
    general = number_text(float(values["learning_rate"]))
    if what.method == "network":
        return _rates_of_network(values)
    if what.method == "full":
        unet = phrase("U-Net by its parts") if values.get("block_lr") else phrase("U-Net {rate}", rate=general)
        return [unet, *_rates_of_text(values)]
    if what.method in ("embedding", "xti"):
        return [phrase("new word {rate}", rate=general)]
    return [phrase("control network {rate}", rate=general)]


def _rates_of_text(values: Values) -> list[str]:
    if not trains_text_encoder(values):
        return []
    own = [key for key in ("learning_rate_te", "learning_rate_te1", "learning_rate_te2") if key in values]
    given = [values["learning_rate"] if values[key] is None else values[key] for key in own]
    found = [phrase("text encoder {rate}", rate=", ".join(number_text(float(rate)) for rate in given))]
    stop = values.get("stop_text_encoder_training")
    return [*found, phrase("text encoder until step {n}", n=stop)] if stop else found


def _rates_of_network(values: Values) -> list[str]:
    general = float(values["learning_rate"])
    unet = general if values.get("unet_lr") is None else float(values["unet_lr"])
    text = values.get("text_encoder_lr") or [general]
    found = []
    if not values.get("network_train_text_encoder_only"):
        found.append(phrase("U-Net {rate}", rate=number_text(unet)))
    if not values.get("network_train_unet_only"):
        found.append(phrase("text encoder {rate}", rate=", ".join(number_text(float(rate)) for rate in text)))
    return found


def _time(expected: tuple[float, int] | None) -> str:
    if expected is None:
        return phrase("unknown until a similar run is done here")
    seconds, runs = expected
    if runs == 1:
        return phrase("about {time} (from 1 run here)", time=time_text(seconds))
    return phrase("about {time} (from {n} runs here)", time=time_text(seconds), n=runs)


def _writes(values: Values, written: Sequence[Write]) -> str:
    final = next(item for item in reversed(written) if not item.state)
    files = sum(not item.state for item in written) - 1
    states = sum(item.state for item in written)
    total = sum(item.size for item in written if item.size) if all(item.size for item in written) else None
    free = machine.free_bytes(Path(os.path.abspath(str(values.get("output_dir") or "."))))
    more = phrase("1 checkpoint") if files == 1 else phrase("{n} checkpoints", n=f"{files:,}") if files else ""
    kept = phrase("1 state") if states == 1 else phrase("{n} states", n=f"{states:,}") if states else ""
    each = phrase("{size} each", size=bytes_text(final.size)) if final.size and files else ""
    return together(
        final.name,
        more,
        kept,
        each,
        phrase("about {size} in all", size=bytes_text(total)) if total else "",
        phrase("{size} free", size=bytes_text(free)) if free is not None and values.get("output_dir") else "",
    )
