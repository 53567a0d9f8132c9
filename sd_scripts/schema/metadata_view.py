"""The notes in a .safetensors file, sorted for people: settings, dataset, tags, fingerprints and where it came from.

Anybody may have written the file, so that nothing in it is believed: sizes are limited, and what is not as expected is
shown as plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

from .errors import UserError
from .headers import Header, HeaderError, identify, read_safetensors_header
from .metadata_labels import GROUPS, LABELS, label_of, words

MOST_TAGS = 20_000
MOST_FOLDERS = 1_000
MOST_BUCKETS = 1_000
MOST_TEXT = 10_000
MOST_ENTRIES = 2_000
_MOST_PICTURE = 4_000_000
_MOST_SIDES = 16
_PICTURE = re.compile(r"data:image/(?:png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")
_HINT = "Choose a .safetensors file."
_OTHERS = (".ckpt", ".pt", ".pth", ".bin")
# shown as tables of their own
_TABLES = ("ss_tag_frequency", "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_bucket_info")
_SET_TABLES = ("tag_frequency", "bucket_info")
_TIMES = ("ss_training_started_at", "ss_training_finished_at")


@dataclass(frozen=True)
class Entry:
    """One note: its name in the file, its name for people, and its text for people."""

    key: str
    label: str
    text: str


@dataclass(frozen=True)
class Group:
    """Notes that belong together."""

    title: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Folder:
    """A folder of pictures that was trained on."""

    name: str
    images: int
    repeats: int
    regularisation: bool = False


@dataclass(frozen=True)
class Bucket:
    """A size of pictures and how many had it, repeats counted."""

    width: int
    height: int
    images: int


@dataclass(frozen=True)
class Tag:
    """A tag, how many captions had it, and in which folder."""

    text: str
    count: int
    folder: str


@dataclass(frozen=True)
class MetadataView:
    """What a file tells.

    Attributes:
        name: of the file.
        size: bytes.
        about: one line on what the file is.
        tensors: how many there are.
        parameters: numbers in all of them.
        kinds: type as written in the file -> how many tensors.
        groups: notes for people, without those that say None.
        folders, buckets: of the dataset.
        tags: most frequent first, at most MOST_TAGS.
        all_tags: how many there are.
        picture: a data URL of the picture in the file that programs show for it, or "".
        raw: every note as it stands in the file.
    """

    name: str
    size: int
    about: str = ""
    tensors: int = 0
    parameters: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    folders: tuple[Folder, ...] = ()
    buckets: tuple[Bucket, ...] = ()
    tags: tuple[Tag, ...] = ()
    all_tags: int = 0
    picture: str = ""
    raw: dict[str, str] = field(default_factory=dict)


def read_view(path: str | Path) -> MetadataView:
    """What a .safetensors file tells; only its header is read.

    Raises:
        UserError: in one sentence, if it cannot be read or is no such file.
    """
    file = Path(path)
    if file.suffix.lower() in _OTHERS and file.is_file():
        raise UserError(f"{file.name} has no metadata: only .safetensors files hold any.", "model", _HINT)
    try:
        header = read_safetensors_header(file)
    except HeaderError as error:
        raise UserError(f"{file.name} cannot be read: {error}.", "model", _HINT) from error
    except FileNotFoundError as error:
        raise UserError(f"There is no file {file}.", "model", _HINT) from error
    except (OSError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "its header is damaged"
        raise UserError(f"{file.name} cannot be read: {reason}.", "model", _HINT) from error
    return view(header, file.name, identify(str(file)).detail)


def view(header: Header, name: str = "", about: str = "") -> MetadataView:
    """What a header tells."""
    notes = header.metadata
    tables = {key: _json(notes.get(key)) for key in _TABLES}
    sets = [entry for entry in _list(_json(notes.get("ss_datasets"))) if isinstance(entry, dict)]
    # a dataset file's notes repeat the tags for each of its datasets
    tags = sorted(_tags(tables["ss_tag_frequency"]), key=_by_count)
    tags = tags or sorted((tag for one in sets for tag in _tags(one.get("tag_frequency"))), key=_by_count)
    folders = [*_folders(tables["ss_dataset_dirs"]), *_folders(tables["ss_reg_dataset_dirs"], True)]
    bucket_tables = [tables["ss_bucket_info"], *(one.get("bucket_info") for one in sets)]
    buckets = [bucket for table in bucket_tables for bucket in _buckets(table)]
    kinds: dict[str, int] = {}
    for kind in header.dtypes.values():
        kinds[kind] = kinds.get(kind, 0) + 1
    return MetadataView(
        name=name,
        size=header.size,
        about=about,
        tensors=len(header.shapes),
        parameters=sum(_numbers(shape) for shape in header.shapes.values()),
        kinds=kinds,
        groups=tuple(_groups(notes, {key for key in _TABLES if tables[key] is not None})),
        folders=tuple(folders[:MOST_FOLDERS]),
        buckets=tuple(buckets[:MOST_BUCKETS]),
        tags=tuple(tags[:MOST_TAGS]),
        all_tags=len(tags),
        picture=_picture(notes.get("modelspec.thumbnail", "")),
        raw=dict(notes),
    )


def _numbers(shape: tuple[int, ...]) -> int:
    """How many numbers a tensor has; 0 for a shape that no tensor can have, which would take long to work out."""
    known = len(shape) <= _MOST_SIDES and all(_whole(side) == side >= 0 for side in shape)
    return prod(shape) if known else 0


def _groups(notes: Mapping[str, str], tables: set[str]) -> Iterator[Group]:
    """Known notes in the order of the labels, then the others by name."""
    left = {key: text for key, text in notes.items() if key not in tables and text != "None"}
    if _picture(left.get("modelspec.thumbnail", "")):
        del left["modelspec.thumbnail"]
    for title, belongs in GROUPS:
        keys = sorted((key for key in left if belongs(key)), key=_place)
        yield from _group(title, keys, left)
        left = {key: text for key, text in left.items() if not belongs(key)}
    yield from _group(words("Other notes"), sorted(left), left)


def _group(title: str, keys: list[str], notes: Mapping[str, str]) -> Iterator[Group]:
    if keys:
        entries = (Entry(key, label_of(key)[:MOST_TEXT], _text(key, notes[key])) for key in keys[:MOST_ENTRIES])
        yield Group(title, tuple(entries))


_PLACES = {key: place for place, key in enumerate(LABELS)}


def _place(key: str) -> tuple[int, str]:
    return _PLACES.get(key, len(_PLACES)), key


def _text(key: str, text: str) -> str:
    """A note for people: times as dates, tables spread out, nothing endless."""
    if key in _TIMES:
        text = _date(text)
    elif text[:1] in "{[":
        table = _json(text)
        if key == "ss_datasets":
            table = [_without_tables(entry) for entry in _list(table)] or None
        if table is not None:
            text = _spread(table)
    return text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + " …"


def _spread(table: Any) -> str:
    if isinstance(table, dict) and all(not isinstance(value, dict | list) for value in table.values()):
        return ", ".join(f"{key}={value}" for key, value in table.items() if value is not None)
    return json.dumps(table, ensure_ascii=False, indent=1)


def _without_tables(entry: Any) -> Any:
    return {key: value for key, value in _items(entry) if key not in _SET_TABLES} or entry


def _date(text: str) -> str:
    try:
        return datetime.fromtimestamp(float(text), UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return text


def _json(text: object) -> Any:
    """A note that should be JSON; None if it is not."""
    if not isinstance(text, str):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53 else 0


def _tags(table: Any) -> Iterator[Tag]:
    for folder, counts in _items(table):
        for tag, count in _items(counts):
            yield Tag(tag[:MOST_TEXT], _whole(count), folder[:MOST_TEXT])


def _by_count(tag: Tag) -> tuple[int, str, str]:
    return -tag.count, tag.text, tag.folder


def _folders(table: Any, regularisation: bool = False) -> Iterator[Folder]:
    for name, facts in _items(table):
        if isinstance(facts, dict):
            images, repeats = _whole(facts.get("img_count")), _whole(facts.get("n_repeats"))
            yield Folder(name[:MOST_TEXT], images, repeats, regularisation)


def _buckets(table: Any) -> Iterator[Bucket]:
    for _, facts in _items(table.get("buckets") if isinstance(table, dict) else None):
        size = _list(facts.get("resolution")) if isinstance(facts, dict) else []
        if len(size) == 2:
            yield Bucket(_whole(size[0]), _whole(size[1]), _whole(facts.get("count")))


def _picture(text: str) -> str:
    return text if len(text) <= _MOST_PICTURE and _PICTURE.fullmatch(text) else ""
