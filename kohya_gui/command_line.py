"""A command as one line to paste into a terminal, so that it arrives as it is: for sh, and for cmd of Windows."""

import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence

from sd_scripts.schema.errors import UserError

# signs that cmd reads itself, wherever no quotation mark protects them
_CMD_SIGNS = frozenset('()!^"<>&|')
_CMD_PARTS = _CMD_SIGNS | frozenset(",;= \t")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def printable(argv: Sequence[str], env: Mapping[str, str], windows: bool, before: Sequence[Sequence[str]] = ()) -> str:
    """One line that runs argv with these variables set; the commands of `before` run first, each if the last went well.

    Raises:
        UserError: if a part holds a line break or another control character, which no line for cmd can carry.
    """
    if windows:
        first = "".join(f"set {_cmd_hidden(f'{name}={value}')}&&" for name, value in env.items())
        return first + " && ".join(_cmd_command(command) for command in (*before, argv))
    settings = [f"{name}={value}" for name, value in env.items()]
    return " && ".join(shlex.join(["env", *settings, *command]) for command in (*before, argv))


def _cmd_command(argv: Sequence[str]) -> str:
    return " ".join((_cmd_program(argv[0]), *(_cmd_argument(part) for part in argv[1:])))


def _cmd_program(path: str) -> str:
    """The program's path: cmd itself finds its end, so carets also stand before what parts words."""
    _refuse_control(path)
    if "%" not in path and '"' not in path:
        return f'"{path}"' if _CMD_PARTS & set(path) else path
    return _careted(path, _CMD_PARTS)


def _cmd_argument(part: str) -> str:
    """An argument, quoted as Windows programs read it, and hidden from cmd where quotes alone do not do so."""
    _refuse_control(part)
    quoted = subprocess.list2cmdline([part])
    if "%" in part or '"' in part:
        # variables are replaced inside quotes too, and a quote inside would end the protection
        return _careted(quoted, _CMD_SIGNS)
    return f'"{quoted}"' if quoted == part and _CMD_PARTS & set(part) else quoted


def _cmd_hidden(setting: str) -> str:
    """A setting for `set`, in quotes that cmd passes on, so that blanks at the end belong to nothing."""
    _refuse_control(setting)
    return _careted(f'"{setting}"', _CMD_SIGNS)


def _careted(text: str, signs: frozenset[str]) -> str:
    """The text with a caret before each of the signs, and after each %: no variable's name begins with a caret, and
    cmd takes carets away only after it has looked for variables."""
    made, after_percent = [], False
    for sign in text:
        made.append(f"^{sign}" if after_percent or sign in signs else sign)
        after_percent = sign == "%"
    return "".join(made)


def _refuse_control(part: str) -> None:
    if _CONTROL.search(part):
        raise UserError(
            f"{part!r} holds a line break or a control character, which cannot stand in a command for Windows."
        )
