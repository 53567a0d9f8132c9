"""What the scripts share: a section of options as a command line, errors as one sentence, exit codes.

Exit codes: 0 done, 2 something the person can put right, 130 interrupted, 1 a bug.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import allowed, convert
from sd_scripts.schema.option import OptionField, section_fields
from sd_scripts.schema.parse import default_text
from sd_scripts.schema.suggest import nearest
from sd_scripts.tools.report import report

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
_BETWEEN_LINES = 2.0

_T = TypeVar("_T")


class _Parser(argparse.ArgumentParser):
    """argparse that raises UserError instead of printing usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"The command line cannot be read: {message}.")


def is_required(field: OptionField) -> bool:
    """Whether the option has no default and allows no None."""
    return field.default is None and not field.optional


def build_parser(section: type, prog: str) -> argparse.ArgumentParser:
    """The parser of a section; its namespace holds only what was given, as text."""
    parser = _Parser(prog=prog, description=section.__doc__, argument_default=argparse.SUPPRESS)
    for field in section_fields(section):
        add_argument(parser, field)
    return parser


def add_argument(parser: Any, field: OptionField) -> None:
    """Offer one option: a flag, or a positional argument where `flag` is False."""
    default = "" if is_required(field) else f"Default: {default_text(field)}."
    text = " ".join(part for part in (field.help, allowed(field), default) if part).replace("%", "%%")
    # the full name first: argparse takes it as the name of the value
    names = [f"--{field.key}", *map(_spelled, field.aliases)] if field.flag else [field.key]
    if field.type == "bool":
        parser.add_argument(*names, action="store_true", default=argparse.SUPPRESS, help=text)
        return
    more: dict[str, Any] = {"nargs": field.nargs, "default": argparse.SUPPRESS, "help": text}
    if field.flag:
        more |= {"dest": field.key, "metavar": field.type.removeprefix("list[").removesuffix("]").upper()}
    parser.add_argument(*names, **more)


def _spelled(alias: str) -> str:
    return f"-{alias}" if len(alias) == 1 else f"--{alias}"


def parse_section(section: type[_T], argv: Sequence[str], prog: str) -> _T:
    """The options of a script from its arguments.

    Raises:
        UserError: an unknown flag, a value of the wrong type or out of range, or something missing.
        SystemExit: after --help.
    """
    fields = {field.key: field for field in section_fields(section)}
    namespace, unknown = build_parser(section, prog).parse_known_args(list(argv))
    for argument in unknown:
        if not argument.startswith("-"):
            raise UserError(
                f"{argument!r} on the command line belongs to no option.", hint="Put values with blanks in quotes."
            )
        name = argument.lstrip("-").split("=")[0]
        raise UserError(
            f"{argument.split('=')[0]} is no option of {prog}.", name, nearest(name, fields) or "See --help."
        )
    given = {key: convert(fields[key], value, "on the command line") for key, value in vars(namespace).items()}
    for field in fields.values():
        if is_required(field) and field.key not in given:
            raise UserError(f"--{field.key} must be given.", field.key)
    return section(**given)


def run(section: type[_T], work: Callable[[_T], None], argv: Sequence[str] | None, prog: str) -> int:
    """Parse, work, and say what went wrong in one sentence; returns the exit code."""

    def parsed(arguments: Sequence[str]) -> None:
        work(parse_section(section, arguments, prog))

    return guarded(parsed, argv, prog)


def guarded(work: Callable[[Sequence[str]], None], argv: Sequence[str] | None, prog: str) -> int:
    """Work on the arguments; errors of people and of the file system become one sentence and exit code 2."""
    # bitsandbytes says on every CPU that a package of 4-bit kernels is missing, which nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    job_dir, arguments = job_dir_of(sys.argv[1:] if argv is None else argv)
    with _ending_like_ctrl_c(), report.to(job_dir, prog) if job_dir is not None else nullcontext():
        try:
            code = _told(work, arguments, prog)
        except BaseException as error:
            if not isinstance(error, SystemExit):
                # the trace stands in the console
                report.tell("error", code="bug", message=f"{type(error).__name__}: {error}", hint="", key=None)
                report.end("failed", str(error))
            raise
        report.end({0: "done", EXIT_INTERRUPTED: "stopped"}.get(code, "failed"))
    return code


@contextmanager
def _ending_like_ctrl_c() -> Iterator[None]:
    """SIGTERM, by which jobs and systems end a script, is an interruption: nothing half-written stays."""

    def interrupt(number: int, frame: object) -> NoReturn:
        # asked again while what was begun is taken away
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        # None stands for a handler that was not set from Python
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def job_dir_of(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The job's folder, which the page gives to every script and no help names, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--job_dir", type=Path)
    known, rest = parser.parse_known_args(list(argv))
    return known.job_dir, rest


def _told(work: Callable[[Sequence[str]], None], argv: Sequence[str], prog: str) -> int:
    """The exit code; what went wrong is said in one sentence, on the console and to a job."""

    def failed(message: str, hint: str = "", key: str | None = None) -> int:
        report.tell("error", code="options", message=message, hint=hint, key=key)
        return EXIT_USER_ERROR

    try:
        work(argv)
    except UserError as error:
        print(f"{prog}: {error}", file=sys.stderr, flush=True)
        return failed(error.message, error.hint, error.key)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; what is left to say goes nowhere.
        sys.stdout = open("/dev/null" if sys.platform != "win32" else "nul", "w")  # noqa: SIM115 - lives to the end
        return EXIT_USER_ERROR
    except OSError as error:
        message = f"{error.filename or 'a file'}: {error.strerror or error}."
        print(f"{prog}: {message}", file=sys.stderr, flush=True)
        return failed(message)
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    return 0


def say(text: str) -> None:
    """Print a line at once, whatever signs the terminal knows."""
    report.result(text)
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)


class Ticker:
    """Says how far a long work is, every two seconds at most."""

    def __init__(self, what: str, total: int = 0) -> None:
        self._what, self._total = what, total
        self._last = time.monotonic()
        if total:
            report.phase(what, 0, total)

    def at(self, done: int, total: int | None = None) -> None:
        """So many are done, of so many where that was not known before."""
        of = self._total if total is None else total
        report.phase(self._what, done, of)
        if time.monotonic() - self._last >= _BETWEEN_LINES:
            self._last = time.monotonic()
            say(f"{self._what}: {done} of {of}")


def counted(items: Sequence[_T], what: str) -> Iterator[_T]:
    """The items; now and then a line says how many are done."""
    ticker = Ticker(what, len(items))
    for number, item in enumerate(items):
        ticker.at(number)
        yield item
