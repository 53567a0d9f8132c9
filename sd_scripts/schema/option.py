"""What an option is: one record that the form, the command line, the TOML file and the documentation are made from."""

import dataclasses
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, dataclass_transform

_META = "option"
_T = TypeVar("_T")

Scalar = str | int | float | bool | None


class Condition(ABC):
    """Says from the other options' values whether an option applies. `values` must hold every key of `keys()`."""

    @abstractmethod
    def holds(self, values: Mapping[str, Any]) -> bool:
        """True if the option applies with these values."""

    @abstractmethod
    def keys(self) -> frozenset[str]:
        """The options whose values decide."""


@dataclass(frozen=True)
class Is(Condition):
    """The option `key` has exactly this value."""

    key: str
    value: Scalar

    def holds(self, values: Mapping[str, Any]) -> bool:
        return bool(values.get(self.key) == self.value)

    def keys(self) -> frozenset[str]:
        return frozenset((self.key,))


@dataclass(frozen=True, init=False)
class In(Condition):
    """The option `key` has one of these values."""

    key: str
    values: tuple[Scalar, ...]

    def __init__(self, key: str, *values: Scalar) -> None:
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "values", values)

    def holds(self, values: Mapping[str, Any]) -> bool:
        return values.get(self.key) in self.values

    def keys(self) -> frozenset[str]:
        return frozenset((self.key,))


@dataclass(frozen=True)
class Given(Condition):
    """The option `key` has any value other than nothing, zero, no or the empty text."""

    key: str

    def holds(self, values: Mapping[str, Any]) -> bool:
        return bool(values.get(self.key))

    def keys(self) -> frozenset[str]:
        return frozenset((self.key,))


@dataclass(frozen=True, init=False)
class All(Condition):
    """Every one of the conditions holds."""

    parts: tuple[Condition, ...]

    def __init__(self, *parts: Condition) -> None:
        object.__setattr__(self, "parts", parts)

    def holds(self, values: Mapping[str, Any]) -> bool:
        return all(part.holds(values) for part in self.parts)

    def keys(self) -> frozenset[str]:
        return frozenset().union(*(part.keys() for part in self.parts))


@dataclass(frozen=True, init=False)
class Any_(Condition):
    """At least one of the conditions holds. The underscore keeps it apart from the type `Any`."""

    parts: tuple[Condition, ...]

    def __init__(self, *parts: Condition) -> None:
        object.__setattr__(self, "parts", parts)

    def holds(self, values: Mapping[str, Any]) -> bool:
        return any(part.holds(values) for part in self.parts)

    def keys(self) -> frozenset[str]:
        return frozenset().union(*(part.keys() for part in self.parts))


@dataclass(frozen=True)
class Not(Condition):
    """The condition does not hold."""

    part: Condition

    def holds(self, values: Mapping[str, Any]) -> bool:
        return not self.part.holds(values)

    def keys(self) -> frozenset[str]:
        return self.part.keys()


@dataclass(frozen=True)
class OptionField:
    """One option with all that is known about it.

    `type` is one of str, int, float, bool, int_or_float, list[str], list[float]; `optional` says that None (not given)
    is allowed. `target` says where the value goes: "toml" (a trainer flag), "launcher" (accelerate), "network_args"
    (an item of --network_args) or "gui" (the page only). `kind` is "", "file", "folder", "model", "secret", "long" or
    "list". `off` is the number that means None in a form or an old file. `choice_labels` say in words what the choices
    are, in the same order; empty where these speak for themselves.
    """

    key: str
    type: str
    optional: bool
    default: Any
    help: str
    label: str
    section: str
    attr: str
    choices: tuple[Any, ...]
    minimum: float | None
    maximum: float | None
    step: float | None
    kind: str
    when: Condition | None
    families: tuple[str, ...]
    methods: tuple[str, ...]
    aliases: tuple[str, ...]
    basic: bool
    target: str
    off: Any
    custom: bool
    flag: bool
    nargs: str | None
    place: str
    unit: str
    choice_labels: tuple[str, ...]

    def called(self, choice: Any) -> str:
        """What a person sees for a choice."""
        return dict(zip(self.choices, self.choice_labels, strict=False)).get(choice, str(choice))


def option(
    default: Any,
    help: str,
    *,
    label: str = "",
    choices: tuple[Any, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    step: float | None = None,
    kind: str = "",
    when: Condition | None = None,
    families: tuple[str, ...] = (),
    methods: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    basic: bool = False,
    target: str = "",
    off: Any = None,
    custom: bool = False,
    flag: bool = True,
    nargs: str | None = None,
    place: str = "",
    unit: str = "",
    choice_labels: tuple[str, ...] = (),
) -> Any:
    """Describe one option inside a `@section` class; the attribute is the key, its annotation the type.

    Args:
        default: what the trainer uses when nothing is given; None means "not given".
        help: what it does, its unit, and when to touch it.
        label: the words shown beside the field; made from the key when empty.
        choices: the allowed values (suggestions only, if `custom`).
        minimum, maximum: the allowed range, both ends included.
        step: how far an arrow of the number field moves.
        kind: "file", "folder", "model", "secret", "long" (text of several lines) or "list".
        when: the option is shown and sent only where this holds.
        families, methods: the model families and training methods it applies to; empty for all.
        aliases: keys under which older saved files hold the same value.
        basic: shown in the short form.
        target: overrides the target of the section.
        off: the number a slider shows for None.
        flag: False for a key that is no command line flag.
        nargs: "*" where the flag takes several values.
        place: overrides the place of the section on the page.
        unit: shown behind the number.
        choice_labels: what the choices are called, one for each, where they don't speak for themselves.
    """
    if choice_labels and len(choice_labels) != len(choices or ()):
        raise TypeError("every choice needs a label, or none has one")
    described = {name: value for name, value in locals().items() if name != "default"}
    described["choices"] = tuple(choices or ())
    return dataclasses.field(default=default, metadata={_META: described})


_NAMES: dict[Any, str] = {str: "str", int: "int", float: "float", bool: "bool"}


def _type_name(annotation: Any) -> tuple[str, bool]:
    """The type's name and whether None is allowed."""
    members = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (types.UnionType, typing.Union)
        else (annotation,)
    )
    kept = [member for member in members if member is not types.NoneType]
    optional = len(kept) < len(members)
    if len(kept) == 2 and set(kept) == {int, float}:
        return "int_or_float", optional
    if len(kept) != 1:
        raise TypeError(f"an option cannot have the type {annotation}")
    if typing.get_origin(kept[0]) is list:
        return f"list[{_NAMES[typing.get_args(kept[0])[0]]}]", optional
    return _NAMES[kept[0]], optional


@dataclass_transform(frozen_default=True, kw_only_default=True)
def section(title: str, *, target: str = "toml", place: str = "Parameters") -> Callable[[type[_T]], type[_T]]:
    """Make a class of `option(...)` attributes into a frozen, keyword-only dataclass whose fields are options.

    Args:
        title: the heading in documentation and form.
        target: where the values go unless an option says otherwise.
        place: the sub-tab of the form.
    """

    def decorate(cls: type[_T]) -> type[_T]:
        made = dataclass(frozen=True, kw_only=True)(cls)
        setattr(made, "__section__", (title, target, place))  # noqa: B010 (a plain assignment is unknown to the type checker)
        return made

    return decorate


def section_title(cls: type) -> str:
    """The heading of a section class."""
    return str(cls.__section__[0])  # type: ignore[attr-defined]


def section_fields(cls: type, attr: str = "") -> tuple[OptionField, ...]:
    """The options of a section class in their order; `attr` is the section's name on the config object."""
    hints = typing.get_type_hints(cls)
    home: dict[str, Any] = {
        key: part for part in reversed(cls.__mro__) for key in vars(part).get("__annotations__", ())
    }
    # a section may be built on others: its own options come first, each keeps the heading it was declared under
    entries = sorted(dataclasses.fields(cls), key=lambda entry: cls.__mro__.index(home[entry.name]))
    found = []
    for entry in entries:
        title, target, place = home[entry.name].__section__
        described = dict(entry.metadata[_META])
        name, optional = _type_name(hints[entry.name])
        described["target"] = described["target"] or target
        described["place"] = described["place"] or place
        described["label"] = described["label"] or entry.name.replace("_", " ").capitalize()
        described["flag"] = described["flag"] and described["target"] == "toml"
        if name.startswith("list") and described["nargs"] is None:
            described["nargs"] = "*"
        found.append(
            OptionField(
                key=entry.name,
                type=name,
                optional=optional,
                default=entry.default,
                section=title,
                attr=attr,
                **described,
            )
        )
    return tuple(found)
