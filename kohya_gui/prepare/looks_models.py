"""Dry runs of the tools that work on whole models, and on the notes in files."""

import os
from collections.abc import Callable
from pathlib import Path

from kohya_gui import tools_fields
from kohya_gui.localization import Words
from kohya_gui.prepare import looks_weights as seen
from kohya_gui.prepare.look import Look
from kohya_gui.prepare.looks_weights import Values
from kohya_gui.tools_record import Tool
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.metadata_view import read_view


def _convert(tool: Tool, values: Values, words: Words) -> Look:
    source = str(values.get("model_to_load") or "")
    path = Path(tools_fields.converted(values))
    if not path.parent.is_dir():
        raise UserError(
            f"The folder {path.parent} does not exist.", "target_model_folder_input", "Choose an existing one."
        )
    hub = not os.path.exists(source) and source.count("/") == 1 and not source.startswith((".", "/"))
    items = [] if hub else [seen.model(values, "model_to_load")]
    if items and items[0].path == str(path):
        raise UserError("Source and target are the same.", "target_model_name_input", "Choose another name.")
    kind = values.get("source_model_type")
    said = ("sd1" if kind in tools_fields.SD1_SOURCES else "sd2") if kind else ""
    family = items[0].found.family if items else ""
    if family and said and said != family:
        raise UserError(
            f"{Path(source).name} is for {seen.FAMILIES[family]}, not for {seen.FAMILIES[said]}.", "source_model_type",
            "Leave it open, or choose one of the right kind.",
        )  # fmt: skip
    precision = values.get("target_save_precision_type")
    size = 0
    if items:
        found = items[0].found
        size = seen.bytes_of(found.numbers, precision) if precision in seen.PRECISIONS else found.size
    lines = (
        seen.reads(items, words)
        if items
        else [(words("Reads"), words("{name} from the Hugging Face Hub", name=source))]
    )
    target = {"target": str(path), "overwrite": values.get("overwrite")}
    key = "target_model_name_input"
    return Look((*lines, *seen.writes(target, "target", size, items, words, key)))


def _mix(tool: Tool, values: Values, words: Words) -> Look:
    filled = tools_fields.slots(values, "model_{}")
    items = [seen.model(values, f"model_{slot}") for slot, _, _ in filled]
    if len(items) < 2:
        raise UserError("There is nothing to mix.", "model_b", "Choose at least two models.")
    seen.alike(items)
    total = sum(share for _, _, share in filled)
    size = seen.bytes_of(max(item.found.numbers for item in items), values.get("saving_precision"))
    said = (
        f"{total:g}"
        if abs(total - 1) < 1e-3
        else words("{n}, not 1: the weights get larger or smaller", n=f"{total:g}")
    )
    return Look(
        (
            *seen.reads(items, words),
            *seen.writes(values, "output", size, items, words),
            (words("Shares together"), said),
        )
    )


def _prune(tool: Tool, values: Values, words: Words) -> Look:
    item = seen.model(values, "model_prune", folder=False)
    found = item.found
    size = seen.bytes_of(found.numbers, "fp16") if values.get("half") else found.size
    return Look((*seen.reads([item], words), *seen.writes(values, "prune_output", size, [item], words)))


_LCM_KINDS = {"SD15": "sd1", "SDXL": "sdxl", "SSD-1B": "sdxl"}


def _lcm(tool: Tool, values: Values, words: Words) -> Look:
    item = seen.model(values, "model")
    family, kind = item.found.family, str(values.get("model_type") or "SD15")
    if family and family != _LCM_KINDS[kind]:
        raise UserError(
            f"{Path(item.path).name} is for {seen.FAMILIES[family]}.",
            "model_type",
            "Choose the model type that it has.",
        )
    items = [item]
    if values.get("lcm_lora"):
        items.append(seen.network(values, "lcm_lora"))
        seen.alike(items)
    return Look((*seen.reads(items, words), *seen.writes(values, "name", item.found.size, items, words)))


def _notes(tool: Tool, values: Values, words: Words) -> Look:
    item = seen.read(values, "model")
    found = read_view(item.path)
    made, gone = tools_fields.changed_notes(values)
    lines = [*seen.reads([item], words), (words("Notes"), f"{len(found.raw):,}")]
    changed = bool(made or gone or values.get("thumbnail") or values.get("clear"))
    if not changed:
        return Look(())
    if values.get("save_to"):
        lines += seen.writes(values, "save_to", item.found.size, [item], words)
    else:
        seen.room(Path(item.path), "model", item.found.size)
        lines.append((words("Writes over"), item.path))
    rows = [(name, _short(found.raw.get(name, "")), _short(text)) for name, text in made.items()]
    rows += [(name, _short(found.raw[name]), "") for name in gone if name in found.raw]
    return Look(tuple(lines), (words("Note"), words("Before"), words("After")), tuple(rows))


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + " …"


LOOKS: dict[str, Callable[[Tool, Values, Words], Look]] = {
    "convert_model": _convert,
    "merge_models": _mix,
    "prune_model": _prune,
    "lcm_convert": _lcm,
    "edit_metadata": _notes,
}
