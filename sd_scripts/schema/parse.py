"""Command line and TOML file -> config object: command line over file over default, every type checked at this door."""

import argparse
import sys
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, overload

from .commands import (
    COMMANDS,
    TrainConfig,
    TrainControlNetConfig,
    TrainEmbeddingConfig,
    TrainFullConfig,
    TrainLLLiteConfig,
    TrainNetworkConfig,
)
from .errors import UserError
from .fields import allowed, convert, find_command, trainer_fields
from .fields import fields as all_fields
from .finding import Finding, warning
from .option import OptionField, section_fields
from .retired import retired
from .rules import check, implied
from .suggest import nearest
from .toml_text import dumps

NOT_WRITTEN = ("config_file", "output_config", "allow_plugins", "wandb_api_key", "huggingface_token")


class _Parser(argparse.ArgumentParser):
    """argparse that raises UserError instead of printing usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"The command line cannot be read: {message}.")


def build_parser(command: str) -> argparse.ArgumentParser:
    """The command's argument parser. Its namespace holds only what was given, as text; `parse` converts it.

    Raises:
        UserError: for an unknown command.
    """
    found = find_command(command)
    parser = _Parser(
        prog=Path(found.module).name,
        usage=f"accelerate launch {found.module} [--option value ...]",
        argument_default=argparse.SUPPRESS,
        description=f"Train: {found.title}. Options may also stand in a TOML file, given with --config_file. "
        "docs/options.md lists them all.",
    )
    groups: dict[str, Any] = {}
    for field in trainer_fields(command).values():
        if field.section not in groups:
            groups[field.section] = parser.add_argument_group(field.section)
        _add(groups[field.section], field)
    return parser


def _add(group: Any, field: OptionField) -> None:
    text = " ".join(part for part in (field.help, allowed(field), f"Default: {default_text(field)}.") if part).replace(
        "%", "%%"
    )
    if field.type == "bool":
        group.add_argument(f"--{field.key}", action="store_true", default=argparse.SUPPRESS, help=text)
    else:
        metavar = field.type.removeprefix("list[").removesuffix("]").upper().replace("_OR_", "|")
        group.add_argument(f"--{field.key}", nargs=field.nargs, metavar=metavar, default=argparse.SUPPRESS, help=text)


def default_text(field: OptionField) -> str:
    """The default in words, for help and documentation."""
    if field.default is None:
        return "none"
    if field.type == "bool":
        return "on" if field.default else "off"
    return "empty" if field.default == "" else str(field.default)


@overload
def parse(command: Literal["train_network", "sdxl_train_network"], argv: Sequence[str]) -> TrainNetworkConfig: ...
@overload
def parse(command: Literal["train_db", "fine_tune", "sdxl_train"], argv: Sequence[str]) -> TrainFullConfig: ...
@overload
def parse(
    command: Literal["train_textual_inversion", "train_textual_inversion_XTI", "sdxl_train_textual_inversion"],
    argv: Sequence[str],
) -> TrainEmbeddingConfig: ...
@overload
def parse(command: Literal["train_controlnet"], argv: Sequence[str]) -> TrainControlNetConfig: ...
@overload
def parse(command: Literal["sdxl_train_control_net_lllite"], argv: Sequence[str]) -> TrainLLLiteConfig: ...
@overload
def parse(command: str, argv: Sequence[str], heeded: Collection[str] | None = None) -> TrainConfig: ...
def parse(command: str, argv: Sequence[str], heeded: Collection[str] | None = None) -> TrainConfig:
    """The config of one run from its arguments (without the program's name).

    With --output_config the options are written into the file of --config_file instead, and the program ends.
    `heeded` names the sections (as attributes of the config) that a script uses which does only a part of the
    training's work: what is missing or does not fit elsewhere, or belongs to another trainer, is no error there.

    Raises:
        UserError: for an unknown or ambiguous flag or key, a value of the wrong type or out of range, a missing file,
            or options that do not go together (all such problems in one message).
        SystemExit: after --help and --output_config.
    """
    fields = trainer_fields(command)
    notes: list[Finding] = []
    given = _read_argv(command, argv, notes)
    if "config_file" in given and not given.get("output_config"):
        path = _toml_path(given["config_file"])
        given = {**_read_toml(command, path, notes, strict=heeded is None), **given}
    if given.get("output_config"):
        _write_config(fields, given)
        sys.exit(0)
    findings = check(command, given)
    if heeded is not None:
        findings = [
            found for found in findings if not found.key or found.key not in fields or fields[found.key].attr in heeded
        ]
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        _raise(errors)
    notes += findings
    values = {key: field.default for key, field in fields.items()} | given
    values.update(implied(command, values))
    return _build(command, values, frozenset(given), tuple(notes))


def _raise(errors: Sequence[Finding]) -> NoReturn:
    first = errors[0]
    if len(errors) == 1:
        raise UserError(first.message, first.key, first.hint)
    lines = "".join(f"\n- {error}" for error in errors)
    raise UserError(f"{len(errors)} things do not fit:{lines}", first.key)


def _build(command: str, values: Mapping[str, Any], given: frozenset[str], notes: tuple[Finding, ...]) -> TrainConfig:
    found = find_command(command)
    parts = {
        attr: cls(**{field.key: values[field.key] for field in section_fields(cls, attr) if field.key in values})
        for attr, cls in found.sections.items()
    }
    return found.config(command=command, given=given, warnings=notes, **parts)


def _read_argv(command: str, argv: Sequence[str], notes: list[Finding]) -> dict[str, Any]:
    fields = trainer_fields(command)
    namespace, unknown = build_parser(command).parse_known_args(list(argv))
    reasons, left_out = retired(command), False
    for argument in unknown:
        name = argument.lstrip("-").split("=")[0]
        if argument.startswith("--") and name in reasons:
            notes.append(warning(name, f"--{name} is ignored: {reasons[name]}."))
            left_out = True
        elif argument.startswith("--") or not left_out:  # the value of a retired flag is left out with it
            _unknown_argument(command, argument)
    return {key: convert(fields[key], value, "on the command line") for key, value in vars(namespace).items()}


def _unknown_argument(command: str, argument: str) -> NoReturn:
    script = Path(find_command(command).module).name
    if not argument.startswith("-"):
        raise UserError(
            f"{argument!r} on the command line belongs to no option.", hint="Put values with blanks in quotes."
        )
    name = argument.lstrip("-").split("=")[0]
    raise UserError(f"--{name} is no option of {script}.", name, _way_out(command, name))


def _way_out(command: str, name: str) -> str:
    """What to do about a name that is no flag of the trainer."""
    known = all_fields(command).get(name)
    if known is not None and known.target == "network_args":
        return f"Write it into network_args, as {name}=value."
    if known is not None and known.target == "launcher":
        return f"It belongs to accelerate launch, before the script: --{name}."
    if known is not None:
        return "It is a field of the page only."
    others = [Path(other.module).name for other in COMMANDS.values() if name in trainer_fields(other.name)]
    if others:
        return f"It is an option of {others[0] if len(others) == 1 else ', '.join(others[:-1]) + ' and ' + others[-1]}."
    return nearest(name, trainer_fields(command)) or "docs/options.md lists them all."


def _toml_path(text: str) -> Path:
    return Path(text if text.endswith(".toml") else f"{text}.toml")


def _read_toml(command: str, path: Path, notes: list[Finding], strict: bool) -> dict[str, Any]:
    """The file's values. Unless `strict`, keys of other trainers are passed over: the script does their work too."""
    if not path.is_file():
        raise UserError(f"The configuration file {path} does not exist.", "config_file")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows may put a mark in front
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"The configuration file {path} is no TOML: {error}.",
            "config_file",
            "Write Windows paths in single quotes, as 'C:\\pictures'.",
        ) from error
    except OSError as error:
        raise UserError(f"The configuration file {path} cannot be read: {error.strerror}.", "config_file") from error
    fields, reasons = trainer_fields(command), retired(command)
    read: dict[str, Any] = {}
    for key, value in _flat(content, path, notes).items():
        if key in reasons:
            notes.append(warning(key, f"{key} in {path.name} is ignored: {reasons[key]}."))
        elif key == "allow_plugins":
            # a file may come from anybody; only who starts the program can trust what it names
            if value:
                raise UserError(f"{key} stands in {path}, where it does not count.", key, "Start with --allow_plugins.")
        elif key in fields:
            read[key] = convert(fields[key], value, f"in {path}")
        elif strict or not any(key in trainer_fields(other) for other in COMMANDS):
            raise UserError(f"{key} in {path} is no option.", key, _way_out(command, key))
    return read


def _flat(content: Mapping[str, Any], path: Path, notes: list[Finding]) -> dict[str, Any]:
    """The keys of all tables in one; a later one wins, as in kohya's scripts, but not silently."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        for key, item in value.items() if isinstance(value, dict) else ((name, value),):
            if key in flat:
                notes.append(warning(key, f"{key} stands in {path.name} more than once; the last one counts."))
            flat[key] = item
    return flat


def _write_config(fields: Mapping[str, OptionField], given: Mapping[str, Any]) -> None:
    if "config_file" not in given:
        raise UserError(
            "output_config needs the name of the file to write.", "config_file", "Add --config_file run.toml."
        )
    path = _toml_path(given["config_file"])
    kept = {
        key: given[key]
        for key, field in fields.items()
        if key in given and key not in NOT_WRITTEN and given[key] != field.default
    }
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(dumps(kept))
    except FileExistsError as error:
        raise UserError(
            f"The configuration file {path} exists already and is left as it is.", "config_file", "Choose another name."
        ) from error
    except OSError as error:
        raise UserError(f"The configuration file {path} cannot be written: {error.strerror}.", "config_file") from error
    print(f"Wrote {len(kept)} options into {path}.")
