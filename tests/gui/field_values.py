"""A value for any option that is not its default."""

from typing import Any

from sd_scripts.schema.option import OptionField


def another(option: OptionField) -> Any:
    """A value of the option's type that is not its default."""
    if option.choices and not option.type.startswith("list"):
        return next((choice for choice in option.choices if choice not in (option.default, option.off, None)), None)
    low = 0 if option.minimum is None else option.minimum
    high = low + 5 if option.maximum is None else option.maximum
    return {
        "bool": not option.default,
        "int": int(min(low + 3, high)),
        "int_or_float": int(min(low + 3, high)),
        "float": float(low + (high - low) / 3),
        "str": "some text",
        "list[str]": ["a=1", "b c"],
        "list[float]": [0.5],
    }[option.type]
