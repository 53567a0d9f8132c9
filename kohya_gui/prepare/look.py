"""What a dry run tells."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """What will happen, for people: (label, text) lines and one table."""

    lines: tuple[tuple[str, str], ...]
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
