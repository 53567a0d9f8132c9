"""Short texts of the plan: made in English here, and translated where they are shown.

The first argument of `phrase` is always a literal, so that a list of all texts can be made from the source. Several of
them stand in one line with SIGN between, and are translated one by one.
"""

SIGN = " · "


def phrase(text: str, **values: object) -> str:
    """An English text with its {placeholders} filled in."""
    return text.format(**values) if values else text


def together(*parts: str) -> str:
    """The texts that are not empty, in one line."""
    return SIGN.join(part for part in parts if part)
