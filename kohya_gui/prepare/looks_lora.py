"""Dry runs of the tools that work on LoRA files."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from kohya_gui import tools_fields
from kohya_gui.localization import Words
from kohya_gui.prepare import looks_weights as seen
from kohya_gui.prepare.look import Look
from kohya_gui.prepare.looks_weights import Read, Values
from kohya_gui.tools_record import Tool
from kohya_gui.weights import PRECISIONS, lora_numbers
from sd_scripts.schema.errors import UserError

Looking = Callable[[Tool, Values, Words], Look]


def _networks(values: Values) -> list[Read]:
    """The networks in the slots, each with a strength. Raises UserError."""
    items = []
    for slot, _, ratio in tools_fields.slots(values, "lora_{}_model"):
        items.append(seen.network(values, f"lora_{slot}_model"))
        if not ratio:
            raise UserError(
                f"The merge ratio of model {slot.upper()} is 0, so nothing of it would be merged.",
                f"ratio_{slot}",
                "Give it more, or leave the model out.",
            )
    return items


def _merge(tool: Tool, values: Values, words: Words) -> Look:
    found = _networks(values)
    if not values.get("sd_model"):
        if len(found) < 2:
            raise UserError(
                "There is nothing to merge.", "lora_a_model" if not found else "sd_model",
                "Choose a model and at least one LoRA, or two LoRA files.",
            )  # fmt: skip
        seen.alike(found)
        count = sum if values.get("concat") else max
        size = seen.bytes_of(count(item.found.numbers for item in found), values.get("save_precision"))
        return _done(values, "save_to", size, found, words)
    if not found:
        raise UserError("There is nothing to merge.", "lora_a_model", "Choose at least one LoRA.")
    base = seen.model(values, "sd_model")
    _family(tool, values, [base, *found])
    size = seen.bytes_of(base.found.numbers, values.get("save_precision"))
    return _done(values, "save_to", size, [base, *found], words)


def _family(tool: Tool, values: Values, items: list[Read]) -> None:
    """The files are of one family, and of the one that was chosen. Raises UserError."""
    family = seen.alike(items)
    chosen = str(values.get("model_family") or tools_fields.AUTO)
    if family and chosen not in (tools_fields.AUTO, family):
        raise UserError(
            f"{Path(items[0].path).name} is for {seen.FAMILIES[family]}.", "model_family",
            "Leave the kind of model as the files say.",
        )  # fmt: skip


def _done(values: Values, key: str, size: int, items: list[Read], words: Words) -> Look:
    return Look((*seen.reads(items, words), *seen.writes(values, key, size, items, words)))


def _svd(tool: Tool, values: Values, words: Words) -> Look:
    found = _networks(values)
    if not found:
        raise UserError("There is nothing to merge.", "lora_a_model", "Choose at least one LoRA.")
    seen.alike(found)
    made = tools_fields.svd_options(values)["ratios"]
    shares = ", ".join(f"{Path(item.path).name} {share:.3g}" for item, share in zip(found, made))
    first = found[0].found
    numbers = first.numbers / first.rank * int(values.get("new_rank") or 4) if first.rank else first.numbers
    size = seen.bytes_of(numbers, values.get("save_precision"))
    made_lines = _done(values, "save_to", size, found, words).lines
    return Look((*made_lines, (words("Shares"), shares)))


def _lycoris(tool: Tool, values: Values, words: Words) -> Look:
    items = [seen.model(values, "base_model"), seen.network(values, "lycoris_model")]
    _family(tool, values, items)
    size = seen.bytes_of(items[0].found.numbers, values.get("dtype"))
    return _done(values, "output_name", size, items, words)


def _extract(
    tuned: str, base: str, target: str, dims: tuple[str, str], tool: Tool, values: Values, words: Words
) -> Look:
    items = [seen.model(values, tuned), seen.model(values, base)]
    _family(tool, values, items)
    if items[0].path == items[1].path:
        raise UserError("Both are the same model, so there is nothing to extract.", tuned, "Choose the tuned model.")
    ranks = [int(values.get(key) or 0) for key in dims]
    size = 0
    if values.get("mode", "fixed") == "fixed":
        size = seen.bytes_of(lora_numbers(items[0].path, *ranks), values.get("save_precision"), PRECISIONS["fp16"])
    return _done(values, target, size, items, words)


def _split(tool: Tool, values: Values, words: Words) -> Look:
    item = seen.network(values, "model")
    unit, rank = int(values.get("unit") or 0), item.found.rank
    if not unit:
        raise UserError("The unit is missing.", "unit", "Give the step between the ranks, as in training.")
    if rank and unit > rank:
        raise UserError(f"{Path(item.path).name} has rank {rank}.", "unit", "Give a smaller unit.")
    ranks = [*range(unit, rank, unit), *([] if values.get("legacy") or not rank else [rank])]
    path = Path(str(values.get("save_to") or ""))
    numbers = item.found.numbers / rank * sum(ranks) if rank else 0
    seen.room(path, "save_to", seen.bytes_of(numbers, "", 2))
    if not values.get("overwrite"):
        there = [name for name in (split_name(path, each) for each in ranks) if path.with_name(name).exists()]
        if there:
            raise UserError(
                f"{there[0]} is there already.", "save_to", "Choose another name, or allow that it is overwritten."
            )
    return Look((
        *seen.reads([item], words),
        (words("Writes"), words("{n} files, {first} to {last}", n=len(ranks), first=split_name(path, ranks[0]),
                                last=split_name(path, ranks[-1])) if ranks else str(path)),
        (words("Free disk space"), seen.size_text(seen.free_space(path))),
    ))  # fmt: skip


def split_name(path: Path, rank: int) -> str:
    """The name of the file of one rank."""
    return f"{path.stem}-{rank:04d}{path.suffix}"


def _resize(tool: Tool, values: Values, words: Words) -> Look:
    item = seen.network(values, "model")
    rank, new = item.found.rank, int(values.get("new_rank") or 4)
    method, number = values.get("dynamic_method"), values.get("dynamic_param")
    if method:
        _dynamic(str(method), number)
    numbers = item.found.numbers * min(new / rank, 1) if rank else item.found.numbers
    looked = _done(values, "save_to", seen.bytes_of(numbers, values.get("save_precision")), [item], words)
    if not rank:
        return looked
    to = words("at most {n}, as each layer needs", n=new) if method else str(new)
    return Look((*looked.lines, (words("Rank"), words("from {old} to {new}", old=rank, new=to))))


def _dynamic(method: str, number: object) -> None:
    if not isinstance(number, int | float):
        raise UserError(f"{method} needs a number.", "dynamic_param", "Give one, such as 0.9, or 20 for sv_ratio.")
    if method == "sv_ratio" and number < 2:
        raise UserError("For sv_ratio the number must be 2 or more.", "dynamic_param", "Give more, such as 20.")
    if method != "sv_ratio" and not 0 < number <= 1:
        raise UserError(f"For {method} the number must lie between 0 and 1.", "dynamic_param", "Give one such as 0.9.")


def _verify(tool: Tool, values: Values, words: Words) -> Look:
    return Look(tuple(seen.reads([seen.network(values, "file")], words)))


def _names(tool: Tool, values: Values, words: Words) -> Look:
    item = seen.network(values, "model")
    size = item.found.size
    if values.get("save_precision"):
        size = seen.bytes_of(item.found.numbers, values["save_precision"])
    return _done(values, "save_to", size, [item], words)


def _interrogate(tool: Tool, values: Values, words: Words) -> Look:
    items = [seen.model(values, "sd_model"), seen.network(values, "model")]
    _family(tool, values, items)
    return Look(tuple(seen.reads(items, words)))


LOOKS: dict[str, Looking] = {
    "extract_dylora": _split,
    "extract_lora": partial(_extract, "model_tuned", "model_org", "save_to", ("dim", "conv_dim")),
    "extract_lycoris_locon": partial(_extract, "db_model", "base_model", "output_name", ("linear_dim", "conv_dim")),
    "merge_lora": _merge,
    "merge_lycoris": _lycoris,
    "svd_merge_lora": _svd,
    "resize_lora": _resize,
    "verify_lora": _verify,
    "convert_lora": _names,
    "interrogate_lora": _interrogate,
}
