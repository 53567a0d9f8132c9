"""What a tool would do, worked out from names and headers alone: the dry run of every utility."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kohya_gui.localization import Words
from kohya_gui.paths import Roots
from kohya_gui.prepare import looks_lora, looks_models, looks_weights
from kohya_gui.prepare.folders import free_space
from kohya_gui.prepare.look import Look
from kohya_gui.tools import PATHS, Tool, tool_fields
from sd_scripts.schema.caption_edit import CaptionEdit
from sd_scripts.schema.captions import decode_caption
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.folders import IMAGE_EXTENSIONS, normalise_extension

MOST_ROWS = 20


def pictures_in(folder: Path, recursive: bool, key: str) -> list[Path]:
    """Pictures in a folder, or in those below too, in the order in which the scripts take them.

    Raises:
        UserError: the folder is missing, cannot be read or holds none.
    """
    if not folder.is_dir():
        raise UserError(f"The folder {folder} does not exist.", key, "Choose an existing one.")
    try:
        found = sorted(_walk(folder, recursive))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}.", key) from error
    if not found:
        raise UserError(f"There are no pictures in {folder}.", key, "Pictures are png, jpg, jpeg, webp, bmp or avif.")
    return found


def _walk(folder: Path, recursive: bool) -> list[Path]:
    found: list[Path] = []
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.suffix.lower() in IMAGE_EXTENSIONS and entry.is_file():
            found.append(entry)
        elif recursive and entry.is_dir() and not entry.is_symlink():
            found += _walk(entry, recursive)
    return found


def look(tool: Tool, values: Mapping[str, Any], words: Words) -> Look:
    """The dry run of a tool.

    Args:
        tool: the tool.
        values: its values, paths resolved.
        words: the language.

    Raises:
        UserError: what the tool would refuse, as far as it can be known without doing it.
    """
    works: dict[str, Callable[[Tool, Mapping[str, Any], Words], Look]] = {
        "basic_caption": _edits,
        "group_images": _groups,
    }
    works |= looks_lora.LOOKS | looks_models.LOOKS
    usual = _captions if "caption_extension" in tool.keys else _places
    return works.get(tool.name, usual)(tool, values, words)


def notes(tool: Tool, values: Mapping[str, Any], roots: Roots, words: Words) -> dict[str, dict[str, str]]:
    """What stands under the fields while one fills them: what the chosen files are, told from their headers."""
    return looks_weights.notes(tool, values, roots, words)


def _places(tool: Tool, values: Mapping[str, Any], words: Words) -> Look:
    """Of a tool of which nothing more is known: the files and folders of its form, and whether they are there."""
    lines = []
    for key, option in tool_fields(tool).items():
        text = str(values.get(key) or "")
        if text and option.kind in PATHS:
            state = (
                words("{path} is there", path=text) if Path(text).exists() else words("{path} is not there", path=text)
            )
            lines.append((words(option.label), state))
    return Look(tuple(lines))


def caption_paths(values: Mapping[str, Any], folder_key: str, extension: str) -> list[Path]:
    """The caption file of every picture, each once."""
    pictures = pictures_in(Path(str(values[folder_key])), bool(values.get("recursive")), folder_key)
    ending = normalise_extension(extension)
    return list(dict.fromkeys(picture.with_name(picture.stem + ending) for picture in pictures))


def _captions(tool: Tool, values: Mapping[str, Any], words: Words) -> Look:
    """Of the captioners that load a model: how many captions they will write."""
    option = tool.start.get("caption_extension") or ".txt"
    targets = caption_paths(values, tool.folder, str(values.get("caption_extension") or option))
    there = sum(path.exists() for path in targets)
    lines = [(words("Pictures"), f"{len(targets):,}")]
    if values.get("append_tags"):
        lines.append((words("Tags are added to"), words("{n} captions that are there", n=f"{there:,}")))
        lines.append((words("Captions written"), f"{len(targets):,}"))
    elif values.get("overwrite"):
        lines.append((words("Captions written over"), f"{there:,}"))
        lines.append((words("Captions written"), f"{len(targets):,}"))
    else:
        lines.append((words("Left as they are"), words("{n} that have a caption", n=f"{there:,}")))
        lines.append((words("Captions written"), f"{len(targets) - there:,}"))
    return Look(tuple(lines))


def edit_of(values: Mapping[str, Any]) -> CaptionEdit:
    """The edit that the form of basic captioning asks for."""
    texts = {key: str(values.get(key) or "") for key in ("caption_text", "prefix", "postfix", "find_text")}
    return CaptionEdit(
        texts["caption_text"],
        texts["prefix"],
        texts["postfix"],
        texts["find_text"],
        str(values.get("replace_text") or ""),
        bool(values.get("overwrite")),
    )


def _edits(tool: Tool, values: Mapping[str, Any], words: Words) -> Look:
    edit = edit_of(values)
    edit.check()
    targets = caption_paths(values, tool.folder, str(values.get("caption_ext") or ".txt"))
    rows: list[tuple[str, str, str]] = []
    changed = fresh = 0
    for path in targets:
        before = decode_caption(path.read_bytes(), path).strip() if path.exists() else None
        after = edit.of(before)
        if after is None:
            continue
        changed += before is not None
        fresh += before is None
        if len(rows) < MOST_ROWS:
            rows.append((path.name, before if before is not None else words("(none)"), after))
    lines = (
        (words("Pictures"), f"{len(targets):,}"),
        (words("New captions"), f"{fresh:,}"),
        (words("Captions changed"), f"{changed:,}"),
        (words("Left as they are"), f"{len(targets) - fresh - changed:,}"),
    )
    return Look(lines, (words("Caption"), words("Before"), words("After")), tuple(rows))


def _groups(tool: Tool, values: Mapping[str, Any], words: Words) -> Look:
    source, target = Path(str(values["input_folder"])), Path(str(values["output_folder"]))
    pictures = pictures_in(source, bool(values.get("include_subfolders")), "input_folder")
    if source == target:
        raise UserError("Input and output are the same folder.", "output_folder", "Choose another one.")
    size = int(values.get("group_size") or 1)
    groups = -(-len(pictures) // size)
    last = len(pictures) - (groups - 1) * size
    clash = len([path for path in target.iterdir() if path.name.startswith("group-")]) if target.is_dir() else 0
    if clash and not values.get("overwrite"):
        raise UserError(
            f"{target} holds {clash} files of groups already.",
            "overwrite",
            "Choose another folder, or allow that they are overwritten.",
        )
    kinds = Counter(path.suffix.lower() for path in pictures)
    bytes_in = sum(path.stat().st_size for path in pictures)
    lines = (
        (words("Pictures"), f"{len(pictures):,} ({', '.join(f'{n} {kind}' for kind, n in kinds.most_common())})"),
        (words("Groups"), words("{n} of {size}, the last of {last}", n=groups, size=size, last=last)),
        (words("To read"), f"{bytes_in / 1e6:,.1f} MB"),
        (words("Free disk space"), f"{free_space(target) / 1e9:,.1f} GB"),
    )
    return Look(lines)
