"""Where the page's password comes from, and how it stays out of the list of processes, which every user may read."""

import getpass
import os
import sys
from collections.abc import MutableMapping, Sequence

from sd_scripts.schema.errors import UserError

VARIABLE = "KOHYA_GUI_PASSWORD"
_FLAG = "--password"


def taken_out(words: Sequence[str]) -> tuple[list[str], str | None]:
    """The command line without the password's flag, and the password that stood there last; None for none."""
    kept: list[str] = []
    found: str | None = None
    position = 0
    while position < len(words):
        name, has_value, value = words[position].partition("=")
        # argparse takes the start of a flag for the flag
        if not (_FLAG.startswith(name) and len(name) > 2):
            kept.append(words[position])
        elif has_value:
            found = value
        elif position + 1 < len(words):
            position += 1
            found = words[position]
        else:
            kept.append(words[position])
        position += 1
    return kept, found


def leave_the_process_list(words: Sequence[str]) -> None:
    """Start this program once more without the password among its arguments, if it stands there.

    The environment, where it goes, is readable by the same user only. On Windows arguments of other users' processes
    are not shown, and a second start would come loose from the terminal; nothing is done there.
    """
    kept, found = taken_out(words)
    if found is None or os.name == "nt" or list(sys.orig_argv[len(sys.orig_argv) - len(words) :]) != list(words):
        return
    before = sys.orig_argv[: len(sys.orig_argv) - len(words)]
    os.execve(sys.executable, [*before, *kept], {**os.environ, VARIABLE: found})


def choose(username: str, flag: str, environment: MutableMapping[str, str] = os.environ) -> str:
    """The password: of the flag, of the environment (from which it is taken away), or typed at the terminal.

    Args:
        username: where one is given without a password, and a person sits at the terminal, the password is asked for.
        flag: what the command line gave; "" for nothing.

    Raises:
        UserError: if nothing is typed.
    """
    stored = environment.pop(VARIABLE, "")
    if flag or stored or not username or not sys.stdin or not sys.stdin.isatty():
        return flag or stored
    typed = getpass.getpass(f"Password for {username}: ")
    if not typed:
        raise UserError("No password was typed.", "password", f"Type one, or set {VARIABLE}.")
    return typed
