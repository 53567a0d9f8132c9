"""Reading files that may be saved forms: limits, damaged and hostile content. Nothing here knows an option."""

import json
import math
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sd_scripts.schema.errors import UserError

MOST_BYTES = 2_000_000
MOST_KEYS = 3000
MOST_DEPTH = 20
# a file of small lists takes seconds, and a form holds a few hundred values
_MOST_COMMAS = 100_000
# its reader is slow, and no such file of ours or a trainer comes near
_MOST_TOML = 300_000
# a key of many parts takes a TOML reader far longer than its length
_MOST_DOTS = 200
_CHOOSE = "Choose a file saved by this page or by kohya_ss."
# halves of characters, and the sign that ends a text in the operating system's own functions
_BROKEN = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True)
class Content:
    """What a file says.

    `toml` tells that it is TOML, as the trainers read it. `doubled` are keys that stand in it twice, `broken` those
    whose text held signs that no text has.
    """

    raw: dict[str, Any]
    toml: bool = False
    doubled: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def read_file(path: Path) -> str:
    """The text of a file that may be a saved form; a large one is refused by its size, unread.

    Raises:
        UserError: if it is missing, too large or no text.
    """
    try:
        if not path.is_file():
            raise UserError(f"The file {path} does not exist.", hint="Choose another one.")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UserError(f"{path.name} is too large for a saved form ({size:,} bytes).", hint="Choose another file.")
        with path.open("rb") as file:
            # it may grow between the look at its size and the reading
            content = file.read(MOST_BYTES)
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is no text file.", hint=_CHOOSE) from error
    except ValueError as error:
        raise UserError("The file's name holds a sign that no name may hold.", hint="Choose another file.") from error


def parse(text: str) -> Content:
    """The keys and values in the text of a JSON or TOML file.

    Raises:
        UserError: in one sentence, if it is damaged, hostile or no table of settings.
    """
    if len(text) > MOST_BYTES:
        raise UserError(
            f"The file is too large for a saved form ({len(text):,} characters).", hint="Choose another file."
        )
    if text.count(",") > _MOST_COMMAS:
        raise UserError("The file holds far more than a saved form.", hint="Choose another file.")
    doubled: list[str] = []
    toml = False
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=lambda pairs: _table(pairs, doubled))
    except RecursionError as error:
        raise UserError("The file is nested too deeply for a saved form.") from error
    except ValueError as error:
        value, toml = _parse_toml(text, error), True
    if not isinstance(value, dict):
        raise UserError("The file holds no settings (a JSON object is needed).", hint="Choose another file.")
    if len(value) > MOST_KEYS or _depth(value) > MOST_DEPTH:
        raise UserError("The file holds far more than a saved form.", hint="Choose another file.")
    broken: list[str] = []
    raw = {_clean(key, broken, key): _clean(item, broken, key) for key, item in value.items()}
    return Content(raw, toml, [key for key in dict.fromkeys(doubled) if key in raw], list(dict.fromkeys(broken)))


def _table(pairs: list[tuple[str, Any]], doubled: list[str]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                doubled.append(key)
            seen.add(key)
    return made


def _no_constant(name: str) -> Any:
    raise UserError(f"The file holds {name}, which is no number.", hint="Correct it in a text editor.")


def _parse_toml(text: str, json_error: ValueError) -> Any:
    where = f" (line {json_error.lineno})" if isinstance(json_error, json.JSONDecodeError) else ""
    damaged = UserError(f"The file is damaged or no saved form{where}.", hint="Choose another file.")
    if len(text) > _MOST_TOML or any(line.count(".") > _MOST_DOTS for line in text.splitlines()):
        raise damaged from json_error
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        raise damaged from json_error


def _depth(value: Any, level: int = 0) -> int:
    if level > MOST_DEPTH or not isinstance(value, dict | list):
        return level
    inner = value.values() if isinstance(value, dict) else value
    return max((_depth(item, level + 1) for item in inner), default=level)


def _clean(value: Any, broken: list[str], key: str) -> Any:
    """The value with broken text mended; numbers without end are refused, since no file of ours could hold them."""
    if isinstance(value, str):
        if not _BROKEN.search(value):
            return value
        broken.append(_BROKEN.sub("?", key))
        return _BROKEN.sub("?", value)
    if isinstance(value, dict):
        return {_clean(name, broken, key): _clean(item, broken, key) for name, item in value.items()}
    if isinstance(value, list):
        return [_clean(item, broken, key) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"The file holds a number that is none or has no end, at {key[:60]!r}.", hint="Correct it.")
    # TOML has dates, which no option takes
    return value if value is None or isinstance(value, bool | int | float) else str(value)
