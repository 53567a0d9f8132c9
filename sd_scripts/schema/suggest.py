"""The nearest known name to a misspelt one."""

import difflib
from collections.abc import Iterable


def near(name: str, known: Iterable[str]) -> str:
    """The most similar known name, or two of them with "or" between; empty if none is similar."""
    by_plain = {candidate.lower().replace("-", "_"): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower().replace("-", "_"), by_plain, n=2, cutoff=0.7)
    # a second proposal only confuses where the first is nearly certain
    if len(found) == 2 and difflib.SequenceMatcher(None, name.lower(), found[0]).ratio() > 0.9:
        found = found[:1]
    return " or ".join(by_plain[match] for match in found)


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence proposing the most similar known names, or the empty text if none is similar."""
    found = near(name, known)
    return f"Did you mean {found}?" if found else ""
