"""One thing that is wrong with a form's values, to be said beside its field."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Problem:
    """Something wrong ("error": Start is stopped) or doubtful ("warning"), with the option it is about.

    `fix` holds the values that would mend it, where a click can.
    """

    severity: str
    key: str | None
    message: str
    hint: str = ""
    fix: Mapping[str, Any] = field(default_factory=dict, hash=False)
