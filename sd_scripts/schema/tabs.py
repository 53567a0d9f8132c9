"""The training tabs: which trainers stand behind each, and all options that a tab offers for any of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from .errors import UserError
from .fields import fields, trainer_fields
from .option import All, Any_, Condition, Is, Not, OptionField
from .suggest import nearest


@dataclass(frozen=True)
class Tab:
    """A training tab.

    `command` is its trainer for Stable Diffusion 1 and 2, or its only one; `variants` are (switch, trainer) pairs: the
    first switch that is on chooses the trainer. Jobs and saved files of a tab are known by `command`. `set_elsewhere`
    are options of its trainers that the page works out from other fields, or that none of its models takes.
    """

    name: str
    title: str
    command: str
    variants: tuple[tuple[str, str], ...] = ()
    set_elsewhere: frozenset[str] = frozenset()

    @property
    def commands(self) -> tuple[str, ...]:
        """All trainers of the tab, its own first."""
        return (self.command, *(command for _, command in self.variants))


# control pictures lie beside pictures, which no list of pictures knows about
_NO_LISTS = frozenset(("in_json", "dataset_repeats"))

TABS: dict[str, Tab] = {
    tab.name: tab
    for tab in (
        Tab("dreambooth", "Dreambooth", "train_db", (("sdxl", "sdxl_train"),)),
        Tab("lora", "LoRA", "train_network", (("sdxl", "sdxl_train_network"),)),
        Tab(
            "textual_inversion",
            "Textual Inversion",
            "train_textual_inversion",
            (("sdxl", "sdxl_train_textual_inversion"), ("xti", "train_textual_inversion_XTI")),
            frozenset(("use_object_template", "use_style_template")),
        ),
        Tab("finetune", "Finetune", "fine_tune", (("sdxl", "sdxl_train"),)),
        Tab("controlnet", "ControlNet", "train_controlnet", set_elsewhere=_NO_LISTS),
        Tab(
            "lllite",
            "ControlNet-LLLite",
            "sdxl_train_control_net_lllite",
            # SDXL, the only family there, reads no weights in captions
            set_elsewhere=_NO_LISTS | {"weighted_captions"},
        ),
    )
}


def find_tab(name: str) -> Tab:
    """The tab of this name.

    Raises:
        UserError: if there is none, naming the nearest.
    """
    if name not in TABS:
        raise UserError(f"There is no training tab {name!r}.", hint=nearest(name, TABS))
    return TABS[name]


def tab_of(command: str) -> Tab:
    """The tab whose own trainer, or else one of whose trainers, this is.

    Raises:
        UserError: if no tab has it.
    """
    own = [tab for tab in TABS.values() if tab.command == command]
    found = own or [tab for tab in TABS.values() if command in tab.commands]
    if not found:
        raise UserError(
            f"No training tab stands for {command!r}.", hint=nearest(command, [t.command for t in TABS.values()])
        )
    return found[0]


SET_ELSEWHERE = frozenset(("v2", "v_parameterization", "sdxl"))
"""Keys of trainers, files and conditions that are no fields: the page works them out from `model_family`."""


@cache
def tab_fields(name: str) -> Mapping[str, OptionField]:
    """Every field of the tab's form: what one of its trainers or the page offers, key -> field.

    An option that only some of the trainers offer has their switches in its condition. Where trainers describe an
    option differently, the tab's own trainer is heard first. Conditions may name keys of `SET_ELSEWHERE`.

    Raises:
        UserError: for an unknown tab.
    """
    tab = find_tab(name)
    return {key: field for key, field in tab_options(name).items() if key not in SET_ELSEWHERE | tab.set_elsewhere}


@cache
def tab_options(name: str) -> Mapping[str, OptionField]:
    """The tab's fields and the options that the page works out from them.

    Raises:
        UserError: for an unknown tab.
    """
    tab = find_tab(name)
    collected: dict[str, OptionField] = {}
    for command in tab.commands:
        for key, field in fields(command).items():
            collected.setdefault(key, field)
    return {key: _with_switches(tab, field) for key, field in collected.items()}


@cache
def tab_aliases(name: str) -> Mapping[str, str]:
    """Old key -> key, for files of this tab written by older programs."""
    return {old: field.key for field in tab_fields(name).values() for old in field.aliases}


def tab_complete(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the default where a key of the tab is missing."""
    return {**{key: field.default for key, field in tab_options(name).items()}, **values}


def _with_switches(tab: Tab, field: OptionField) -> OptionField:
    """A trainer's option with a condition that leaves out the trainers that do not offer it."""
    offering = {command for command in tab.commands if field.key in trainer_fields(command)}
    if not offering or offering == set(tab.commands):
        return field
    parts: list[Condition] = [] if field.when is None else [field.when]
    if tab.command in offering:
        parts += [Not(Is(switch, True)) for switch, command in tab.variants if command not in offering]
    else:
        wanted = [Is(switch, True) for switch, command in tab.variants if command in offering]
        parts += wanted if len(wanted) == 1 else [Any_(*wanted)]
    return replace(field, when=parts[0] if len(parts) == 1 else All(*parts))


def trainer_of(name: str, values: Mapping[str, Any]) -> str:
    """The trainer that runs for these values of a tab.

    Raises:
        UserError: for an unknown tab.
    """
    tab = find_tab(name)
    return next((command for switch, command in tab.variants if values.get(switch) is True), tab.command)


def switch_of(command: str) -> str:
    """The switch that chooses this trainer on its tab; empty for a tab's own trainer.

    Raises:
        UserError: if no tab has it.
    """
    return next((switch for switch, variant in tab_of(command).variants if variant == command), "")
