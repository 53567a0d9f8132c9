"""The words of the page in another language: flat JSON files `localizations/<language>.json`, English text ->
translation."""

import json
from pathlib import Path

from sd_scripts.schema.errors import UserError

FOLDER = Path(__file__).resolve().parent.parent / "localizations"


class Words:
    """Translates whole English texts; a text without a translation stays English.

    Called with an English text and the values of its {placeholders}, it gives the text to show.
    """

    def __init__(self, table: dict[str, str], language: str = "en") -> None:
        self.table = table
        self.language = language

    def __call__(self, text: str, **values: object) -> str:
        shown = self.table.get(text, text)
        return shown.format(**values) if values else shown


def languages(folder: Path = FOLDER) -> list[str]:
    """The names of the languages there are files for, English first."""
    found = sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []
    return ["en", *[name for name in found if name != "en"]]


def load(language: str | None, folder: Path = FOLDER) -> Words:
    """Read a language.

    Args:
        language: name of a file in `folder` without `.json`; None and "en" mean English.
        folder: where the files are.
    Raises:
        UserError: if there is no such language, or its file is not one flat JSON object of texts.
    """
    if not language or language == "en":
        return Words({})
    if language not in languages(folder):
        raise UserError(
            f'There is no language "{language}".', key="language", hint=f"There are: {', '.join(languages(folder))}."
        )
    path = folder / f"{language}.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The language file {path.name} cannot be read: {error}.", key="language") from error
    if not isinstance(table, dict) or not all(isinstance(text, str) for text in table.values()):
        raise UserError(f"The language file {path.name} is not one flat JSON object of texts.", key="language")
    return Words({key.strip(): text for key, text in table.items()}, language)
