"""WD14 taggers in ONNX format: the list of tags, the picture as the network wants it, and what it is sure of."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sd_scripts.schema.errors import UserError

MODEL, TAGS = "model.onnx", "selected_tags.csv"
GENERAL, CHARACTER, RATING = "0", "4", "9"
_WHITE = 255
_SHORT = 3  # tags up to this length are faces such as >_<


@dataclass(frozen=True)
class TagList:
    """Names of tags, and the places of the kinds among the network's outputs."""

    names: tuple[str, ...]
    general: tuple[int, ...]
    characters: tuple[int, ...]
    ratings: tuple[int, ...] = ()


def read_tags(path: Path) -> TagList:
    """The tags of a tagger from its table: tag_id, name, category, count. Raises UserError for another file."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        kinds = [row["category"] for row in rows]
        names = tuple(row["name"] for row in rows)
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no list of tags: {error}.", "model_dir") from error
    return TagList(
        names,
        tuple(place for place, kind in enumerate(kinds) if kind == GENERAL),
        tuple(place for place, kind in enumerate(kinds) if kind == CHARACTER),
        tuple(place for place, kind in enumerate(kinds) if kind == RATING),
    )


def find_files(model_dir: str, repo_id: str, force_download: bool) -> tuple[Path, Path]:
    """Network and tag list: from a folder of the tagger's own in model_dir, from model_dir itself, or from the hub.

    Raises:
        UserError: they are not there and cannot be fetched.
    """
    own = Path(model_dir) / repo_id.replace("/", "_")
    for folder in () if force_download else (own, Path(model_dir)):
        if (folder / MODEL).is_file() and (folder / TAGS).is_file():
            return folder / MODEL, folder / TAGS

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        for name in (MODEL, TAGS):
            hf_hub_download(repo_id, name, local_dir=own, force_download=force_download)
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"The tagger {repo_id} is not in {model_dir} and cannot be fetched: {first}.",
            "repo_id",
            f"Put {MODEL} and {TAGS} into {own}.",
        ) from error
    return own / MODEL, own / TAGS


def prepare(pixels: np.ndarray, side: int) -> np.ndarray:
    """RGB or RGBA uint8 -> float32 [side, side, 3] in blue, green, red order and 0..255: on white, made square."""
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:].astype(np.float32) / 255
        pixels = (pixels[..., :3] * alpha + _WHITE * (1 - alpha) + 0.5).astype(np.uint8)
    height, width = pixels.shape[:2]
    longest = max(height, width)
    square = np.full((longest, longest, 3), _WHITE, np.uint8)
    top, left = (longest - height) // 2, (longest - width) // 2
    square[top : top + height, left : left + width] = pixels
    how = cv2.INTER_AREA if longest > side else cv2.INTER_LANCZOS4
    resized = cv2.resize(square, (side, side), interpolation=how) if longest != side else square
    return np.asarray(resized[..., ::-1], dtype=np.float32)


class Tagger:
    """A loaded network."""

    def __init__(self, model: Path, tags: Path) -> None:
        """Raises UserError where ONNX Runtime is not installed, or the files do not belong together."""
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                "Tagging needs ONNX Runtime, which is not installed.", hint="Run: pip install onnxruntime==1.31.1"
            ) from error
        self.tags = read_tags(tags)
        wanted = ("CUDAExecutionProvider", "ROCMExecutionProvider", "CPUExecutionProvider")
        there = set(onnxruntime.get_available_providers())
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(model), providers=[name for name in wanted if name in there]
            )
        except Exception as error:
            # ONNX Runtime's errors have no common class that can be named here.
            first = (str(error).splitlines() or [""])[0]
            raise UserError(f"{model} cannot be read as an ONNX network: {first}", "model_dir") from error
        described = self._session.get_inputs()[0]
        self._name = described.name
        shape = list(described.shape)
        if len(shape) != 4 or shape[1] != shape[2] or not isinstance(shape[1], int) or shape[3] != 3:
            raise UserError(f"{model} takes no pictures [n, side, side, 3], but {shape}.", "model_dir")
        self.side = shape[1]
        self._fixed = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None

    def certainties(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """[pictures, tags] in 0..1. Raises UserError where the network has another number of tags."""
        batch = np.stack(prepared)
        step = self._fixed or len(batch)
        parts = []
        for start in range(0, len(batch), step):
            part = batch[start : start + step]
            missing = step - len(part)  # some networks take batches of one size only
            filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
            parts.append(np.asarray(self._session.run(None, {self._name: filled})[0])[: len(part)])
        found = np.concatenate(parts)
        if found.shape[1] != len(self.tags.names):
            raise UserError(
                f"The network knows {found.shape[1]} tags, but {TAGS} lists {len(self.tags.names)}.", "model_dir"
            )
        return found


_EXPANDED = re.compile(r"^(?P<name>.+?)[ _]\((?P<series>[^()]+)\)$")


@dataclass(frozen=True)
class Arrangement:
    """How the tags of a picture are put together.

    rating: where the likeliest rating stands, "first", "last" or "" for nowhere. expand: a character's tag with a
    series in brackets becomes two tags. first: tags that go to the front if they were found. instead: tag -> what is
    written for it.
    """

    rating: str = ""
    characters_first: bool = False
    expand: bool = False
    first: tuple[str, ...] = ()
    instead: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """Which tags are written, and how."""

    general: float
    character: float
    undesired: frozenset[str]
    blanks: bool
    arrangement: Arrangement = Arrangement()

    def tags(self, certainties: np.ndarray, known: TagList) -> list[str]:
        """Tags of one picture: the general ones in the list's order, then names of characters, or as arranged."""
        how = self.arrangement
        general = self._named([place for place in known.general if certainties[place] >= self.general], known)
        characters = self._named([place for place in known.characters if certainties[place] >= self.character], known)
        if how.expand:
            characters = [part for name in characters for part in expanded(name)]
        names = [*characters, *general] if how.characters_first else [*general, *characters]
        if how.rating and known.ratings:
            rating = self._named([max(known.ratings, key=lambda place: float(certainties[place]))], known)
            names = [*rating, *names] if how.rating == "first" else [*names, *rating]
        names = [how.instead.get(name, name) for name in names]
        ahead = [name for name in how.first if name in names]
        # a series stands once, however many of its characters were found
        return list(dict.fromkeys(name for name in [*ahead, *names] if name and name not in self.undesired))

    def _named(self, places: Sequence[int], known: TagList) -> list[str]:
        return [spelled(known.names[place], self.blanks) for place in places]


def expanded(name: str) -> list[str]:
    """A character's name and its series as two tags: `alice (wonderland)` becomes `alice` and `wonderland`."""
    found = _EXPANDED.match(name)
    return [found["name"], found["series"]] if found else [name]


def replacements(text: str) -> dict[str, str]:
    """Tags and what is written for them, from `old,new;old,new`; a backslash before , or ; makes it a part of a tag.

    Raises:
        UserError: a pair that is none.
    """
    pairs = {}
    for part in re.split(r"(?<!\\);", text):
        if not part.strip():
            continue
        sides = [re.sub(r"\\([,;])", r"\1", side).strip() for side in re.split(r"(?<!\\),", part)]
        if len(sides) != 2 or not sides[0]:
            raise UserError(
                f"{part.strip()!r} does not say which tag becomes which.", "tag_replacement", "Write old,new;old,new."
            )
        pairs[sides[0]] = sides[1]
    return pairs


def spelled(name: str, blanks: bool) -> str:
    """A tag's name, with blanks for underscores if asked for."""
    return name.replace("_", " ") if blanks and len(name) > _SHORT else name


def joined(existing: str, new: Sequence[str], separator: str) -> str:
    """New tags behind those of a text that has not got them yet."""
    mark = separator.strip() or separator
    there = [tag.strip() for tag in existing.split(mark) if tag.strip()]
    return separator.join([*there, *(tag for tag in new if tag not in there)])
