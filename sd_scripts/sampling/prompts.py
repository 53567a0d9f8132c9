"""Read the prompts of the sample pictures: `.txt`, `.toml` and `.json` files in the format kohya's trainers use.

A line is the prompt followed by options, each begun by a blank and two dashes:
`a cat --n blurry --w 640 --h 768 --d 42 --l 7.5 --s 28 --ss euler_a`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sd_scripts.sampling.schedulers import FALLBACK, SAMPLERS, known_sampler
from sd_scripts.sampling.weights import parse_weights
from sd_scripts.schema.errors import UserError

MAX_STEPS = 1000
_KEY = "sample_prompts"


@dataclass(frozen=True)
class PromptDefaults:
    """What a prompt gets where it says nothing; the sizes are pixels. Values for Stable Diffusion 1, 2 and XL."""

    width: int = 512
    height: int = 512
    steps: int = 30
    scale: float = 7.5
    size_multiple: int = 8
    size_minimum: int = 64


@dataclass(frozen=True)
class SamplePrompt:
    """One picture to make during training.

    `width` and `height` are pixels, already rounded down to what the model can make. `seed` None means a fresh one
    each time, `sampler` None the one of `--sample_sampler`. `extras` holds options only other model families use
    (guidance_scale, flow_shift ...). `notes` are sentences about parts of the line that were not understood.
    """

    prompt: str
    negative: str | None = None
    width: int = 512
    height: int = 512
    steps: int = 30
    scale: float = 7.5
    seed: int | None = None
    sampler: str | None = None
    controlnet_image: str | None = None
    index: int = 0
    extras: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Option:
    """One line option: its letters, the key it sets, the text it accepts and how that text becomes a value."""

    letters: str
    key: str
    accepts: str
    convert: Callable[[str], Any]

    @property
    def pattern(self) -> re.Pattern[str]:
        """The option with its value, to be matched at the start of a part of the line."""
        return re.compile(rf"{self.letters} ({self.accepts})", re.IGNORECASE)


def _steps(text: str) -> int:
    return max(1, min(MAX_STEPS, int(text)))


# In the order in which they are tried.
_OPTIONS = (
    _Option("w", "width", r"\d+", int),
    _Option("h", "height", r"\d+", int),
    _Option("d", "seed", r"\d+", int),
    _Option("s", "sample_steps", r"\d+", _steps),
    _Option("l", "scale", r"[\d.]+", float),
    _Option("g", "guidance_scale", r"[\d.]+", float),
    _Option("n", "negative_prompt", r".+", str),
    _Option("ss", "sample_sampler", r".+", str),
    _Option("cn", "controlnet_image", r".+", str),
    _Option("ctr", "cfg_trunc_ratio", r".+", float),
    _Option("rcfg", "renorm_cfg", r".+", float),
    # Kept as text: the family that uses it converts it.
    _Option("fs", "flow_shift", r".+", str),
)
_PATTERNS = tuple((option, option.pattern) for option in _OPTIONS)
_NUMBERS = ("guidance_scale", "cfg_trunc_ratio", "renorm_cfg")
_EXTRAS = (*_NUMBERS, "flow_shift")
_TABLE_KEYS = ("prompt", *(option.key for option in _OPTIONS))


def parse_line(line: str) -> tuple[dict[str, Any], list[str]]:
    """Take a prompt line apart.

    Returns the values under kohya's names (`prompt`, `width`, `sample_steps` ...; only what the line says) and a note
    for every part that set nothing. As in kohya's trainers the prompt itself is looked at too, so that a prompt
    "w 512" asks for that width, a repeated option overrides the earlier one, and trailing text after a number is cut.
    """
    parts = line.split(" --")
    values: dict[str, Any] = {"prompt": parts[0]}
    notes: list[str] = []
    for position, part in enumerate(parts):
        match = next(((o, found) for o, pattern in _PATTERNS if (found := pattern.match(part))), None)
        if match is None:
            if position > 0:
                notes.append(f"'--{part}' is not an option with a value it accepts; it was left out")
            continue
        option, found = match
        try:
            values[option.key] = option.convert(found.group(1))
        except ValueError:
            notes.append(f"'--{part}': '{found.group(1)}' is not a number; the option was left out")
            continue
        notes += _remarks(option, part, found)
    return values, notes


def _remarks(option: _Option, part: str, found: re.Match[str]) -> list[str]:
    """Notes about a value that was accepted, but not as it was written."""
    if rest := part[found.end() :].strip():
        return [f"'--{part}' was read as '{found.group(1)}'; '{rest}' after it was left out"]
    if option.key == "sample_steps" and int(found.group(1)) != _steps(found.group(1)):
        return [f"'--{part}': steps must lie between 1 and {MAX_STEPS}; {_steps(found.group(1))} is used"]
    return []


def parse_prompts(source: Path | str | Iterable[str], defaults: PromptDefaults | None = None) -> list[SamplePrompt]:
    """Read all prompts of a file (a path) or of lines already in memory.

    Raises UserError, naming file and place, for a missing or unreadable file, another extension, a value of the wrong
    type in a `.toml` or `.json` table, or a prompt weight that is no number. What kohya's trainers pass over in silence
    (unknown options, values out of range) is passed over too, with a sentence in `notes`.
    """
    rules = defaults or PromptDefaults()
    if isinstance(source, str | Path):
        path = Path(source)
        entries = _entries_of_file(path)
        name = str(path)
    else:
        entries = _entries_of_lines(source)
        name = "the prompt list"
    prompts = [_resolve(entry, f"{name}, {place}", index, rules) for index, (place, entry) in enumerate(entries)]
    if not prompts:
        raise UserError(
            f"{name} holds no prompt, so no sample picture can be made",
            key=_KEY,
            hint="write one prompt per line; empty lines and lines that begin with # do not count",
        )
    return prompts


def _entries_of_file(path: Path) -> list[tuple[str, Any]]:
    readers: dict[str, Callable[[str], list[tuple[str, Any]]]] = {
        ".txt": lambda text: _entries_of_lines(text.splitlines()),
        ".toml": _entries_of_toml,
        ".json": _entries_of_json,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path} is no .txt, .toml or .json file, so its prompts cannot be read", key=_KEY)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})", key=_KEY, hint="save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"the prompt file {path} cannot be read: {error.strerror or error}", key=_KEY) from error
    try:
        return reader(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid {path.suffix.lower()[1:].upper()}: {error}", key=_KEY) from error
    except UserError as error:
        raise UserError(f"{path}: {error.message}", key=_KEY, hint=error.hint) from error


def _entries_of_lines(lines: Iterable[str]) -> list[tuple[str, Any]]:
    stripped = ((number, line.strip()) for number, line in enumerate(lines, 1))
    return [(f"line {number}", line) for number, line in stripped if line and not line.startswith("#")]


def _entries_of_toml(text: str) -> list[tuple[str, Any]]:
    base = tomllib.loads(text).get("prompt")
    if not isinstance(base, dict):
        raise UserError("the file has no [prompt] table", hint="write [prompt] and below it [[prompt.subset]] tables")
    common = {key: value for key, value in base.items() if key != "subset"}
    subsets = base.get("subset", [{}])
    if not isinstance(subsets, list) or not all(isinstance(subset, dict) for subset in subsets):
        raise UserError("prompt.subset is no list of tables", hint="begin each with [[prompt.subset]]")
    return [(f"subset {number}", {**common, **subset}) for number, subset in enumerate(subsets, 1)]


def _entries_of_json(text: str) -> list[tuple[str, Any]]:
    data = json.loads(text)
    if not isinstance(data, list) or not all(isinstance(entry, str | dict) for entry in data):
        raise UserError("the file is no list of prompts", hint='write ["a cat --w 640", {"prompt": "a dog"}]')
    return [(f"entry {number}", entry) for number, entry in enumerate(data, 1)]


def _resolve(entry: Any, where: str, index: int, rules: PromptDefaults) -> SamplePrompt:
    if isinstance(entry, str):
        values, notes = parse_line(entry.strip())
    else:
        values, notes = _checked_table(entry, where)
    prompt, negative, sampler = values.get("prompt", ""), values.get("negative_prompt"), values.get("sample_sampler")
    _check_weights(where, prompt, negative or "")
    if sampler is not None and not known_sampler(sampler):
        notes = [*notes, f"'{sampler}' is no sampler ({', '.join(SAMPLERS)} are); {FALLBACK} is used"]
    return SamplePrompt(
        prompt=prompt,
        negative=negative,
        width=_round_size(values.get("width", rules.width), rules),
        height=_round_size(values.get("height", rules.height), rules),
        steps=values.get("sample_steps", rules.steps),
        scale=values.get("scale", rules.scale),
        seed=values.get("seed"),
        sampler=sampler,
        controlnet_image=values.get("controlnet_image"),
        index=index,
        extras={key: values[key] for key in _EXTRAS if key in values},
        notes=tuple(f"{where}: {note}" for note in notes),
    )


def _check_weights(where: str, *texts: str) -> None:
    """Find a wrong prompt weight now rather than at the first picture, hours later."""
    for text in texts:
        try:
            parse_weights(text)
        except UserError as error:
            raise UserError(f"{where}: {error.message}", key=_KEY, hint=error.hint) from error


def _round_size(size: int, rules: PromptDefaults) -> int:
    """The next size downwards that the model can make."""
    return max(rules.size_minimum, size - size % rules.size_multiple)


def _checked_table(table: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {}
    notes: list[str] = []
    for key, value in table.items():
        if key not in _TABLE_KEYS:
            near = get_close_matches(key, _TABLE_KEYS, n=1)
            notes.append(f"'{key}' is not known and was left out" + (f"; did you mean '{near[0]}'?" if near else ""))
        elif value is not None:
            values[key] = _checked_value(key, value, where)
    if "prompt" not in values:
        raise UserError(f"{where}: 'prompt' is missing", key=_KEY)
    return values, notes


def _checked_value(key: str, value: Any, where: str) -> Any:
    def wrong(expected: str) -> UserError:
        return UserError(f"{where}: '{key}' is {value!r}, but must be {expected}", key=_KEY)

    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if key in ("width", "height", "seed", "sample_steps"):
        if not is_number or value != int(value):
            raise wrong("a whole number")
        if key == "sample_steps" and not 1 <= value <= MAX_STEPS:
            raise wrong(f"between 1 and {MAX_STEPS}")
        if key == "seed" and not -(2**63) <= value < 2**64:
            raise wrong("at most 64 bits long")
        return int(value)
    if key == "scale" or key in _NUMBERS:
        if not is_number:
            raise wrong("a number")
        return float(value)
    if key == "flow_shift" and is_number:
        return value
    if not isinstance(value, str):
        raise wrong("a text")
    return value
