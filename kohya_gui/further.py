"""Further flags of the trainer as typed in a terminal: read, checked, and kept free of secrets."""

import re
from collections.abc import Container, Mapping
from typing import Any

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import convert, split_words, trainer_fields
from sd_scripts.schema.parse import build_parser
from sd_scripts.schema.suggest import nearest
from sd_scripts.schema.tabs import tab_of, tab_options

KEY = "additional_parameters"
# set by us for every job, never taken from a form, a file or further flags
OURS = ("config_file", "output_config", "job_dir", "allow_plugins")


def further_flags(command: str, text: str | None) -> dict[str, Any]:
    """The options in a text of flags as typed in a terminal; they go before the fields.

    Args:
        command: the trainer that runs.
        text: the flags.

    Raises:
        UserError: for an unknown flag, a wrong value, or a flag that the page sets itself.
    """
    try:
        words = split_words(text or "")
    except ValueError as error:
        raise UserError("A quotation mark in the further flags is not closed.", KEY) from error
    if not words:
        return {}
    known = trainer_fields(command)
    try:
        namespace, unknown = build_parser(command).parse_known_args(words)
    except UserError as error:
        # an abbreviation that could be several flags, or a flag without its value
        raise UserError(f"The further flags cannot be read: {error.message}", KEY, error.hint) from error
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0]
        hint = nearest(f"--{name}", [f"--{option}" for option in known]) if unknown[0].startswith("-") else ""
        # a second word behind a key may be the key's other half
        shown = repr(unknown[0]) if without_secrets(command, {KEY: text})[KEY] == text else "A word"
        raise UserError(f"{shown} in the further flags is no flag of the trainer.", KEY, hint)
    try:
        read = {name: convert(known[name], value, "in the further flags") for name, value in vars(namespace).items()}
    except UserError as error:
        raise UserError(error.message, KEY, error.hint) from error
    for name in OURS:
        if name in read:
            raise UserError(f"--{name} cannot be set in the further flags.", KEY, "Leave it out.")
    return read


def without_secrets(command: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that may be written into a file: no tokens, no keys, also not inside further flags."""
    known = tab_options(tab_of(command).name)
    secret = {key for key, option in known.items() if option.kind == "secret"}
    kept = {key: value for key, value in values.items() if key not in secret}
    text = kept.get(KEY)
    if isinstance(text, str):
        kept[KEY] = _without_secret_flags(text, secret, known)
    return kept


def _without_secret_flags(text: str, secret: set[str], known: Container[str]) -> str:
    """The text without secret flags and their values, however these are quoted or shortened."""
    try:
        words = split_words(text)
    except ValueError:
        # it cannot be taken apart, so no part of it can be trusted to hold no secret
        return "" if any(key[:6] in text.replace("-", "_") for key in secret) else text
    kept: list[str] = []
    position, found = 0, False
    while position < len(words):
        name, has_value, _ = words[position].partition("=")
        name = name.removeprefix("--") if name.startswith("--") else ""
        # argparse takes the start of a flag for the flag
        if name and (name in secret or (name not in known and any(key.startswith(name) for key in secret))):
            found = True
            position += 1 if has_value else 2
            continue
        kept.append(words[position])
        position += 1
    return " ".join(_flag_quoted(word) for word in kept) if found else text


def _flag_quoted(word: str) -> str:
    """A word so that `split_words` gives it back: a quotation mark of one kind stands inside the other kind."""
    if word and not re.search(r"[\s'\"]", word):
        return word
    return "".join(f"'{part}'" if '"' in part else f'"{part}"' for part in re.findall(r"[^']+|'+", word)) or '""'
