"""A form made from options: components in their places, content -> values, values -> content, and what the page's
script needs to know to mark, search and hide fields."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from kohya_gui import widgets
from kohya_gui.kohya_labels import labels_by_key
from kohya_gui.layout import Group, Page, Place, accordion_name, placed_keys
from kohya_gui.localization import Words
from kohya_gui.model_kind import SWITCHES, resolve
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.option import All, Any_, Condition, Given, In, Is, Not, OptionField

PATCH = "@patch"
"""In an update of the form: only these fields are meant."""


@dataclass
class Collected:
    """What the form says: the values that differ from nothing, and what could not be read as a value."""

    values: dict[str, Any] = field(default_factory=dict)
    mistakes: list[UserError] = field(default_factory=list)


class Form:
    """The fields of one command on one training tab."""

    def __init__(
        self,
        tab: str,
        fields: Mapping[str, OptionField],
        pages: Sequence[Page],
        words: Words,
        start: Mapping[str, Any] | None = None,
        allowed: Callable[[str], bool] | None = None,
    ) -> None:
        """Args:
        tab: the training tab's name; HTML ids begin with it.
        fields: the options of the command.
        pages: the complete layout.
        words: the language.
        start: the values the form opens with; missing keys have the trainer's default.
        allowed: says of a path whether it may be looked at; None allows all.
        """
        self.tab = tab
        self.pages = tuple(pages)
        self.places: dict[str, Place] = dict(placed_keys(pages))
        self.fields = {key: fields[key] for key in self.places}
        self.basic = {key for key, option in self.fields.items() if option.basic} | _of_basic_groups(pages)
        self.words = words
        self.start = dict(start or {})
        self._allowed = allowed
        self._grids = {key: number for number, group in enumerate(_groups(pages)) for key in group.keys}
        self._wide = {key for group in _groups(pages) for key in group.wide}
        self._store: gr.HTML | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys in reading order."""
        return tuple(self.places)

    @property
    def inputs(self) -> list[gr.components.Component]:
        """The one component that holds what stands in all fields. The page's script makes the fields themselves: a
        component for each would cost Gradio seconds at every event."""
        return [self._held()]

    def _held(self) -> gr.HTML:
        if self._store is None:
            started = {key: self._shown(key, value) for key, value in self.start.items() if key in self.fields}
            self._store = widgets.html(
                self._sparse(started),
                html_template="",
                elem_id=f"{self.tab}-fields",
                elem_classes=["k-channel"],
                js_on_load=f"kohya.hold('{self.tab}', props); watch('value', () => kohya.hold('{self.tab}', props))",
            )
        return self._store

    # ------------------------------------------------------------------ building

    def build(self, extras: Mapping[str, Callable[[], None]]) -> None:
        """Make the sub-tabs and fields inside the current Blocks context; `extras` builds the pages' hand-made
        parts."""
        self._held()  # outside the tabs, so that it is there before the first of them is opened
        with gr.Tabs(elem_id=f"{self.tab}-pages", elem_classes=["k-pages"], overflow_behavior="wrap"):
            for page in self.pages:
                self._build_page(page, extras)

    def _build_page(self, page: Page, extras: Mapping[str, Callable[[], None]]) -> None:
        has_basic = any(key in self.basic for key, _ in placed_keys([page])) or bool(page.extra)
        with gr.Tab(
            self.words(page.title),
            id=f"{self.tab}-{page.name}",
            elem_id=f"{self.tab}-page-{page.name}",
            elem_classes=["k-page"] if has_basic else ["k-page", "k-advanced"],
        ):
            for number, group in enumerate(page.groups):
                self._build_group(page, number, group)
            if page.pages:
                with gr.Tabs(elem_classes=["k-subpages"], overflow_behavior="wrap"):
                    for child in page.pages:
                        self._build_page(child, extras)
            if page.extra in extras:
                extras[page.extra]()

    def _build_group(self, page: Page, number: int, group: Group) -> None:
        if group.plain:
            self.build_fields(group)
            return
        basic = any(key in self.basic for key in group.keys)
        with gr.Accordion(
            self.words(group.title),
            open=False,
            elem_id=f"{self.tab}-group-{accordion_name(page, number)}",
            elem_classes=["k-group"] if basic else ["k-group", "k-advanced"],
        ):
            self.build_fields(group)

    def build_fields(self, group: Group) -> None:
        """Make the place where the script puts the fields of a group when it comes into view."""
        widgets.html(
            html_template="",
            elem_id=f"{self.tab}-grid-{self._grids[group.keys[0]]}",
            elem_classes=["k-place"],
            js_on_load="kohya.grid(element)",
        )

    # ------------------------------------------------------------------ values

    def contents(self, given: Sequence[Any]) -> dict[str, Any]:
        """What stands in every field as typed, a text or (for a box) a bool.

        Args:
            given: what an event handler got for `inputs`: one mapping in which fields with their default are left out.
        """
        raw = given[0] if given and isinstance(given[0], Mapping) else {}
        found = {}
        for key, option in self.fields.items():
            first = self.kept_default(key)
            content = raw.get(key, first)
            found[key] = content if type(content) is (bool if option.type == "bool" else str) else first
        return found

    def collect(self, given: Sequence[Any]) -> Collected:
        """The values of all fields, from what an event handler got for `inputs`.

        An empty field is left out, so that the trainer's default holds, except where emptying says something else than
        the default does: then it is None. A text that is no value is a mistake, not a value.
        """
        found = Collected()
        for key, content in self.contents(given).items():
            try:
                value = widgets.read(self.fields[key], content)
            except UserError as mistake:
                found.mistakes.append(mistake)
                continue
            if value is not None or self._can_be_emptied(self.fields[key]):
                found.values[key] = value
        return found

    def _can_be_emptied(self, option: OptionField) -> bool:
        return option.optional and option.default is not None

    def fill(self, values: Mapping[str, Any]) -> list[Any]:
        """The update of `inputs` that shows exactly these values; missing keys get their default."""
        return self.restore({key: self._shown(key, value) for key, value in values.items() if key in self.fields})

    def patch(self, values: Mapping[str, Any]) -> list[Any]:
        """Like `fill`, but fields that are not among `values` stay as they are."""
        shown = {key: self._shown(key, value) for key, value in values.items() if key in self.fields}
        return [{PATCH: shown, "t": time.time()} if shown else gr.skip()]

    def _shown(self, key: str, value: Any) -> Any:
        return widgets.show(self.fields[key], value)

    def _sparse(self, contents: Mapping[str, Any]) -> dict[str, Any]:
        return {key: content for key, content in contents.items() if content != self.kept_default(key)}

    def kept(self, given: Sequence[Any]) -> dict[str, Any]:
        """What stands in the fields and is not the default, as typed: right, wrong or half done. No secrets."""
        return {
            key: content
            for key, content in self._sparse(self.contents(given)).items()
            if self.fields[key].kind != "secret"
        }

    def kept_default(self, key: str) -> Any:
        """What stands in an untouched field."""
        return self._shown(key, self.fields[key].default)

    def restore(self, kept: Mapping[str, Any]) -> list[Any]:
        """The update of `inputs` that shows what `kept` gave."""
        return [self._sparse({key: content for key, content in kept.items() if key in self.fields})]

    def effective(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values with every missing key at its default."""
        return {key: values.get(key, option.default) for key, option in self.fields.items()}

    def applicable(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values without those of fields that do not apply: hidden means not sent."""
        off = self.hidden(values)
        return {key: value for key, value in values.items() if key not in off}

    def changed(self, values: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> dict[str, str]:
        """Keys whose value is not that of the opened file or preset, with the text of the way back.

        Args:
            values: what the form says.
            base: the values it was opened with; a missing key (or no base at all) means the trainer's default.
        """
        marked = {}
        for key, option in self.fields.items():
            before = (base or {}).get(key, option.default)
            value = values.get(key, option.default)
            if value != before and not (value in (None, "") and before in (None, "")):
                marked[key] = self._back_text(option, before)
        return marked

    def _back_text(self, option: OptionField, before: Any) -> str:
        """What the link says that gives a field its earlier value back."""
        words, is_default = self.words, before == option.default
        if option.type == "bool":
            if before:
                return words("default on") if is_default else words("back to on")
            return words("default off") if is_default else words("back to off")
        text = str(widgets.shown(option, before, words)).split("\n")[0]
        if not text:
            return words("clear")
        short = text if len(text) <= 24 else text[:23] + "…"
        return words("default {value}", value=short) if is_default else words("back to {value}", value=short)

    def hidden(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Keys that do not apply with these values, with the reason."""
        # conditions speak of the switches that the kind of base model stands for
        switches = {key: values[key] for key in SWITCHES if key in values}
        full = resolve({**switches, **self.effective(values)}, self._allowed)
        return {
            key: self.words("Applies {when}.", when=self.reason(_missing(option.when, full)))
            for key, option in self.fields.items()
            if option.when is not None and not option.when.holds(full)
        }

    def reason(self, condition: Condition) -> str:
        """A condition in words."""
        if isinstance(condition, Is | Not) and condition.keys() <= {"sdxl", "v_parameterization"}:
            return self._family_reason(condition)
        if isinstance(condition, Is):
            name = self._label(condition.key)
            if isinstance(condition.value, bool):
                return (
                    self.words("with {name} on", name=name)
                    if condition.value
                    else self.words("with {name} off", name=name)
                )
            return self.words("with {name} {value}", name=name, value=condition.value)
        if isinstance(condition, In):
            values = ", ".join(str(value) for value in condition.values)
            return self.words("with {name} {value}", name=self._label(condition.key), value=values)
        if isinstance(condition, Given):
            return self.words("when {name} is set", name=self._label(condition.key))
        if isinstance(condition, Not):
            return self.words("unless {when}", when=self.reason(condition.part))
        joint = self.words("and") if isinstance(condition, All) else self.words("or")
        parts = condition.parts if isinstance(condition, All | Any_) else ()
        return f" {joint} ".join(self.reason(part) for part in parts)

    def _label(self, key: str) -> str:
        return self.words(self.fields[key].label) if key in self.fields else key

    def _family_reason(self, condition: Is | Not) -> str:
        """A condition on the kind of base model, which people see as one field."""
        on = condition.holds(dict.fromkeys(condition.keys(), True))
        if condition.keys() == {"sdxl"}:
            return self.words("for models of Stable Diffusion XL") if on else self.words("for models other than SDXL")
        if on:
            return self.words("for models that predict velocity")
        return self.words("for models that predict noise")

    # ------------------------------------------------------------------ for the script in the page

    def summary(self, changed: Mapping[str, str], off: Mapping[str, str], bad: set[str]) -> dict[str, Any]:
        """What stands on accordions, sub-tabs and the switch between short and long form.

        Args:
            changed: as `changed` gives it.
            off: as `hidden` gives it.
            bad: keys of the fields with a mistake.
        Returns:
            groups (count, more, is: "changed", "none"), tabs (bad, changed, basic) by HTML id, and views: the numbers
            of all and of changed fields.
        """
        groups: dict[str, Counter[str]] = {}
        tabs: dict[str, Counter[str]] = {}
        for page in self._extra_pages():
            tabs[page] = Counter(basic=1)
        for key, place in self.places.items():
            is_changed = key in changed
            for name in place.tabs:
                tabs.setdefault(name, Counter()).update(bad=key in bad, changed=is_changed, basic=key in self.basic)
            if place.accordion:
                counts = groups.setdefault(place.accordion, Counter())
                counts.update(all=key not in off, changed=is_changed, off=key in off)
        return {
            "groups": {f"{self.tab}-group-{name}": self._group_text(counts) for name, counts in groups.items()},
            "tabs": {
                f"{self.tab}-page-{name}": {what: counts[what] or "" for what in ("bad", "changed", "basic")}
                for name, counts in tabs.items()
            },
            "views": ["", len(self.fields), len(changed)],
        }

    def _extra_pages(self) -> list[str]:
        return [page.name for page in self.pages if page.extra]

    def _group_text(self, counts: Counter[str]) -> dict[str, str]:
        every = self.words("1 field") if counts["all"] == 1 else self.words("{n} fields", n=counts["all"])
        return {
            "count": self.words("{n} changed", n=counts["changed"]) if counts["changed"] else every,
            "is": f"{'changed' if counts['changed'] else ''} {'' if counts['all'] else 'none'}".strip(),
        }

    def facts(self) -> dict[str, Any]:
        """What the page's script needs to make every field, find it and go there."""
        entries = {}
        for key, option in self.fields.items():
            place = self.places[key]
            entries[key] = {
                **widgets.facts(option, self.words),
                "tabs": [f"{self.tab}-page-{name}" for name in place.tabs],
                "group": f"{self.tab}-group-{place.accordion}" if place.accordion else "",
                "grid": self._grids[key],
                "basic": key in self.basic,
                "wide": key in self._wide or option.kind == "long",
                "old": labels_by_key().get(key, []),
            }
        return entries


def _missing(condition: Condition, values: Mapping[str, Any]) -> Condition:
    """Of conditions that must all hold those that do not."""
    if not isinstance(condition, All):
        return condition
    parts = [_missing(part, values) for part in condition.parts if not part.holds(values)]
    return parts[0] if len(parts) == 1 else All(*parts)


def _groups(pages: Sequence[Page]) -> list[Group]:
    """All groups in reading order."""
    return [group for page in pages for group in (*page.groups, *_groups(page.pages))]


def _of_basic_groups(pages: Sequence[Page]) -> set[str]:
    """The keys of groups that the short form has as a whole."""
    found: set[str] = set()
    for page in pages:
        found.update(key for group in page.groups if group.basic for key in group.keys)
        found |= _of_basic_groups(page.pages)
    return found
