"""The configurations opened or saved last, for each tab: remembered on the server, shown only where still allowed."""

from pathlib import Path

from kohya_gui.paths import Roots
from kohya_gui.settings import Remembered

MOST = 10
_NAME = "recent"


def use(remembered: Remembered, tab: str, path: Path | str) -> None:
    """Put a file first in the list of its tab."""
    stored = remembered.get(_NAME, {})
    lists = stored if isinstance(stored, dict) else {}
    before = [item for item in _texts(lists.get(tab)) if item != str(path)]
    remembered.put(_NAME, {**lists, tab: [str(path), *before][:MOST]})


def listed(remembered: Remembered, tab: str, roots: Roots) -> list[Path]:
    """The files opened last, newest first: those inside the allowed folders that are still there."""
    stored = remembered.get(_NAME, {})
    texts = _texts(stored.get(tab)) if isinstance(stored, dict) else []
    return [Path(text) for text in texts[:MOST] if roots.allows(text) and Path(text).is_file()]


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str) and item] if isinstance(value, list) else []
