"""The words of the page in other languages: flat JSON files `localizations/<language>.json`, English text ->
translation.

Every request has its own language. What is said while a request is answered is translated at once; what is said while
the page is built is marked, and translated for each language when the page is sent (`Words.finish`).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from html import escape, unescape
from pathlib import Path

from kohya_gui.kohya_labels import old_labels
from sd_scripts.schema.errors import UserError

FOLDER = Path(__file__).resolve().parent.parent / "localizations"
OWN_NAMES = {
    "en": "English",
    "zh-CN": "简体中文",
    "zh-TW": "繁體中文",
    "ja": "日本語",
    "de": "Deutsch",
    "fr": "Français",
    "es": "Español",
}
"""The languages the page is made for, in the menu's order, as their speakers call them."""

# private-use signs around a marked text: begin, name, value, end; no keyboard and no translation has them
_BEGIN, _NAME, _VALUE, _END = "\ue000", "\ue001", "\ue002", "\ue003"
_MARKED = re.compile(f"{_BEGIN}([^{_BEGIN}{_END}]*){_END}")
_MARK_IN_JSON = re.compile(r"\\ue00[0-3]")
_PLACEHOLDER = re.compile(r"\{[^{}]*\}")
_BUCKET = 8
_LEAST_TEXT = 10
_ANYTHING, _ENDING, _SHORT = "(.+?)", "(.*?)", r"(\S+(?: [A-Z]\S*)?)"  # as in 65.0 GB, Kohya LoCon

_building: ContextVar[bool] = ContextVar("kohya_building", default=False)


@dataclass(frozen=True)
class Language:
    """One language: its name in file names and HTML, and its texts."""

    name: str = "en"
    table: Mapping[str, str] = field(default_factory=dict)

    def text(self, english: str) -> str:
        """The translation of a whole text; the text itself if there is none.

        A file made for kohya_ss knows a field by the label it has there.
        """
        found = self.table.get(english)
        if found is None and self.table:
            found = next((self.table[label] for label in old_labels(english) if label in self.table), None)
        return english if found is None else found

    def said(self, sentence: str) -> str:
        """The translation of a sentence that was made elsewhere, with its values in it: found by the texts with
        {placeholders}; the sentence itself if none fits."""
        if not self.table or not sentence:
            return sentence
        whole = self.table.get(sentence)
        if whole is not None:
            return whole
        for start in (sentence[:_BUCKET], ""):
            for pattern, names, translated in self._patterns.get(start, ()):
                found = pattern.fullmatch(sentence)
                if found:
                    # what fills a place may be a text with places itself; it is shorter, so this ends
                    values = {name[1:-1]: self.said(text) for name, text in zip(names, found.groups())}
                    return _filled(translated, values)
        return sentence

    @cached_property
    def _patterns(self) -> dict[str, list[tuple[re.Pattern[str], list[str], str]]]:
        """Beginning of a sentence -> (pattern, placeholders in order, translation), those with most text first; under
        "" those that begin with a placeholder or early have one."""
        made: dict[str, list[tuple[re.Pattern[str], list[str], str]]] = {}
        texts = [text for text in self.table if _letters(text) and _PLACEHOLDER.search(text)]
        for text in sorted(texts, key=lambda text: -len(_PLACEHOLDER.sub("", text))):
            literal = _PLACEHOLDER.split(text)
            pattern = re.compile(_fitting(literal), re.DOTALL)
            start = literal[0][:_BUCKET] if len(literal[0]) >= _BUCKET else ""
            made.setdefault(start, []).append((pattern, _PLACEHOLDER.findall(text), self.table[text]))
        return made


class Words:
    """Gives the texts of the page: `words("Saved as {name}.", name=name)`.

    The language is that of the request being answered, as `current` tells it ("" or an unknown name: the default one);
    between `building()` the text comes marked.
    """

    def __init__(
        self,
        table: Mapping[str, str],
        language: str = "en",
        *,
        folder: Path | None = None,
        current: Callable[[], str] | None = None,
    ) -> None:
        """Args:
        table: the default language's texts.
        language: its name.
        folder: where the other languages' files are; None for no others.
        current: tells the language of the current request.
        """
        self.default = Language(language, dict(table))
        self.folder = folder
        self._current = current
        self._loaded: dict[str, Language] = {language: self.default, "en": Language()} | {language: self.default}

    @property
    def table(self) -> Mapping[str, str]:
        """The texts of the language that is spoken now."""
        return self.spoken().table

    @property
    def language(self) -> str:
        """The name of the language that is spoken now."""
        return self.spoken().name

    def listen(self, current: Callable[[], str]) -> None:
        """From now on ask this which language the current request wants."""
        self._current = current

    def offered(self) -> dict[str, str]:
        """Language -> its own name, for the menu."""
        known = languages(self.folder) if self.folder else list(self._loaded)
        ordered = [name for name in OWN_NAMES if name in known]
        return {name: OWN_NAMES.get(name, name) for name in [*ordered, *(n for n in known if n not in ordered)]}

    def spoken(self) -> Language:
        """The language of the current request, or the default one."""
        wanted = self._current() if self._current else ""
        return self.load(wanted) if wanted else self.default

    def load(self, name: str) -> Language:
        """The language of this name; the default one if there is no such file or it is damaged (a cookie names it)."""
        if name not in self._loaded:
            try:
                # a name is looked up among the files, never made into a path
                self._loaded[name] = _read(name, self.folder) if self.folder else self.default
            except UserError as error:
                print(f"{error} The page stays in {self.default.name}.", flush=True)
                self._loaded[name] = self.default
        return self._loaded[name]

    def __call__(self, text: str, **values: object) -> str:
        if _building.get():
            return _BEGIN + text + "".join(f"{_NAME}{key}{_VALUE}{value}" for key, value in values.items()) + _END
        return _filled(self.spoken().text(text), values)

    def said(self, sentence: str) -> str:
        """A sentence made elsewhere (a finding, an error), in the language spoken now if it has one for it."""
        return self.spoken().said(sentence)

    def error(self, error: UserError) -> str:
        """An error in the language spoken now: what is wrong, and the way out."""
        stop = "" if not error.hint or error.message.endswith((".", "!", "?", ":")) else "."
        return f"{self.said(error.message)}{stop} {self.said(error.hint)}".strip()

    @contextmanager
    def building(self) -> Iterator[None]:
        """While this lasts texts come marked instead of translated, as they go into a page that many languages
        share."""
        before = _building.set(True)
        try:
            yield
        finally:
            _building.reset(before)

    def finish(self, text: str, language: Language, *, html: bool = False) -> str:
        """Every marked text in its language; those in HTML are escaped as the text around them is."""
        while _BEGIN in text:
            done = _MARKED.sub(lambda found: _finished(found[1], language, html), text)
            if done == text:
                break
            text = done
        return text


def _finished(inside: str, language: Language, html: bool) -> str:
    """The translation of one marked text that holds no other; values stand in it as they came."""
    text, *pairs = inside.split(_NAME)
    values = dict(pair.split(_VALUE, 1) for pair in pairs)
    if html:
        plain = unescape(text)
        shown = language.text(plain)
        shown = text if shown == plain else escape(shown)
    else:
        shown = language.text(text)
    return _filled(shown, values)


def _fitting(literal: list[str]) -> str:
    """The regular expression for a text with places, given what stands around these.

    "{n} of {total}" would fit into any sentence: with little text of its own only a word, or two as in "65.0 GB", may
    fill a place. A place directly behind a word is an ending that may be empty, as in "encoder{s}".
    """
    if len("".join(literal)) < _LEAST_TEXT:
        return _SHORT.join(map(re.escape, literal))
    made = ""
    for before in literal[:-1]:
        made += re.escape(before) + (_ENDING if before[-1:].isalnum() else _ANYTHING)
    return made + re.escape(literal[-1])


def _letters(text: str) -> bool:
    """Whether a text has words of its own beside its places."""
    return any(sign.isalpha() for sign in _PLACEHOLDER.sub("", text))


def _filled(text: str, values: Mapping[str, object]) -> str:
    """The text with its {placeholders} filled; one that is unknown (a translator's slip) stays as it is."""
    if not values:
        return text
    return _PLACEHOLDER.sub(lambda part: str(values.get(part[0][1:-1], part[0])), text)


def _harmless(english: str, text: str) -> str:
    """A translation that brings no HTML with it where the English text has none: it goes into the page as it is."""
    for sign, other in (("<", "\u2039"), (">", "\u203a"), ('"', "\u201d")):
        if sign not in english:
            text = text.replace(sign, other)
    return text


def languages(folder: Path = FOLDER) -> list[str]:
    """The names of the languages there are files for, English first."""
    found = sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []
    return ["en", *[name for name in found if name != "en"]]


def load(language: str | None, folder: Path = FOLDER) -> Words:
    """Read a language, to be the default one of a page that offers all others there.

    Args:
        language: name of a file in `folder` without `.json`; None and "en" mean English.
        folder: where the files are.
    Raises:
        UserError: if there is no such language, or its file is not one flat JSON object of texts.
    """
    if not language or (language == "en" and not (folder / "en.json").is_file()):
        return Words({}, folder=folder)
    found = _read(language, folder)
    return Words(found.table, found.name, folder=folder)


def _read(name: str, folder: Path) -> Language:
    """The language in a file.

    Raises:
        UserError: if there is none, or it is not one flat JSON object of texts.
    """
    if name not in languages(folder):
        raise UserError(
            f'There is no language "{name[:40]}".', key="language", hint=f"There are: {', '.join(languages(folder))}."
        )
    path = folder / f"{name}.json"
    try:
        raw = path.read_text(encoding="utf-8")
        table = json.loads(raw)
    except (OSError, ValueError) as error:
        raise UserError(f"The language file {path.name} cannot be read: {error}.", key="language") from error
    sound = isinstance(table, dict) and all(isinstance(text, str) for text in table.values())
    if not sound or any(sign in raw for sign in (_BEGIN, _NAME, _VALUE, _END)) or _MARK_IN_JSON.search(raw):
        raise UserError(f"The language file {path.name} is not one flat JSON object of texts.", key="language")
    texts = {key: _harmless(key, text) for key, text in table.items() if text.strip()}
    # files made for kohya_ss have keys with stray blanks
    return Language(name, {key.strip(): text for key, text in texts.items()} | texts)
