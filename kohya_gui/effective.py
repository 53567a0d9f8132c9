"""What a form's values come to: the trainer that runs, its command, every option, and paths that may be looked at."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kohya_gui import command, confinement, model_kind
from kohya_gui.paths import Roots
from kohya_gui.problem import Problem
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import complete, fields
from sd_scripts.schema.tabs import tab_complete, tab_of, tab_options

_PATH_KINDS = ("file", "folder", "model")


@dataclass(frozen=True)
class Effective:
    """The values of one tab, understood.

    `trainer` runs; `built` is its command, None while none can be made. `full` has every option of the trainer and of
    the page; `seen` is the same without paths outside the allowed folders, and with relative ones made absolute.
    `right` says that nothing is wrong with the values themselves; `family` is a key of `model_kind.FAMILIES`.
    """

    tab_command: str
    trainer: str
    family: str
    built: command.Plan | None
    full: Mapping[str, Any]
    seen: Mapping[str, Any]
    problems: tuple[Problem, ...]
    right: bool
    roots: Roots | None = None

    @property
    def method(self) -> str:
        """How the trainer trains, as in COMMANDS."""
        return COMMANDS[self.trainer].method

    @property
    def prepares(self) -> bool:
        """Whether the list of pictures is made before the training."""
        return self.built is not None and bool(self.built.before)

    def allowed(self, path: str) -> bool:
        """Whether the page may look at a path."""
        return self.roots is None or self.roots.allows(path)


def understand(
    command_name: str, values: Mapping[str, Any], roots: Roots | None = None, *, allow_plugins: bool = False
) -> Effective:
    """Work out what the values mean. Never raises for what people can type; `problems` says it.

    Args:
        command_name: the tab's command.
        values: the form's values; a missing key or None means the default.
        roots: folders the page may touch; None allows all.
        allow_plugins: as for `command.build`.
    """
    trainer, built, resolved, problems = _build(command_name, values, roots, allow_plugins)
    right = not problems
    tab = tab_of(command_name).name
    # the tab's own fields too: Finetune's lists are made in a folder that no trainer for SDXL knows
    known = {**tab_options(tab), **fields(trainer)}
    given = tab_complete(tab, complete(trainer, _typed(command_name, resolved)))
    # of the other trainers nothing else counts: what they offer says how this one would train
    full = {key: given[key] for key in fields(trainer)}
    if built is not None:
        # prompts typed into the form become a file of the job, which is not there yet
        full |= {key: value for key, value in built.toml.items() if not (built.files and key == "sample_prompts")}
    full["sdxl"] = bool(resolved.get("sdxl")) or COMMANDS[trainer].family == "sdxl"
    keys = tuple(key for key, option in known.items() if option.kind in _PATH_KINDS)
    refused = confinement.refused({**given, **full}, keys, roots)
    problems += refused.values()
    seen = {key: None if key in refused else value for key, value in full.items()}
    seen = confinement.absolute(seen, keys)
    return Effective(
        command_name, trainer, model_kind.family(resolved), built, full, seen, tuple(problems), right, roots
    )


def _build(
    name: str, values: Mapping[str, Any], roots: Roots | None, allow_plugins: bool
) -> tuple[str, command.Plan | None, dict[str, Any], list[Problem]]:
    """Trainer and command of the values that can be used, these values resolved, and what is wrong with the others."""
    usable = {key: value for key, value in values.items() if value is not None}
    problems: list[Problem] = []
    trainer, allowed = name, None if roots is None else roots.allows
    # each wrong value hides what comes after it, so it is taken out and the rest looked at again
    while True:
        resolved = model_kind.resolve(usable, allowed)
        try:
            trainer = command.trainer(name, resolved)
            built = command.build(name, usable, allow_plugins=allow_plugins, allowed=allowed)
            return trainer, built, resolved, problems
        except UserError as error:
            problems.append(Problem("error", error.key, error.message, error.hint))
            if error.key is None or error.key not in usable:
                return trainer, None, resolved, problems
            usable.pop(error.key)


def _typed(command_name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that the tab's trainers or the page know, in their options' types; those that cannot be are left
    out."""
    known = tab_options(tab_of(command_name).name)
    made: dict[str, Any] = {}
    for key, value in values.items():
        try:
            made |= command.typed(command_name, {key: value}) if key in known else {}
        except UserError:
            continue  # said where the command is built
    return made
