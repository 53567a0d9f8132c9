"""Where a configuration can come from, by a short name: the form, the opened file, presets, recent files, jobs.

The page only ever sends such a name; the values behind it are read here, and files only inside the allowed folders.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from kohya_gui import configs, recent, user_presets
from kohya_gui.form import Form
from kohya_gui.job_view import JobView
from kohya_gui.model_kind import FAMILY_NAMES
from kohya_gui.services import Services
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tabs import find_tab

FORM, FILE, DEFAULTS = "form", "file", "defaults"
PRESET, OWN, PATH, JOB = "preset:", "own:", "path:", "job:"
MOST_JOBS = 20
_FAMILIES = (*FAMILY_NAMES, "")


@dataclass(frozen=True)
class FileState:
    """The configuration a session works on.

    `path` is where it is kept ("" for nowhere) and `stamp` when that file was last changed (nanoseconds), `preset` the
    source name of the preset it is, `values` what it holds, `extras` the keys of the file that are on no form but must
    be written back. `before` is what "Undo" brings back.
    """

    path: str = ""
    name: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    preset: str = ""
    stamp: int = 0
    before: "Before | None" = None


@dataclass(frozen=True)
class Before:
    """What stood in the form until it was filled anew: the session's configuration, and what the form said."""

    file: FileState
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """One configuration: its short name, what people call it, its values."""

    id: str
    label: str
    values: Mapping[str, Any]


def family_of(preset: configs.Preset) -> str:
    """The kind of base model that a preset is for, a key of FAMILY_NAMES; "" if it does not say."""
    chosen = str(preset.values.get("model_family", ""))
    return chosen if chosen in FAMILY_NAMES else ""


class Sources:
    """The configurations that one training tab can look at."""

    def __init__(self, tab: str, form: Form, services: Services) -> None:
        self.tab = tab
        self.form = form
        self.services = services
        self.words = services.words
        found = sorted(configs.presets(tab), key=lambda preset: _FAMILIES.index(family_of(preset)))
        self.shipped = {PRESET + preset.name: preset for preset in found}

    def own(self) -> dict[str, configs.Preset]:
        """The person's presets by source name."""
        return {OWN + preset.name: preset for preset in user_presets.listed(self.services.home, self.tab)}

    def preset(self, source: str) -> configs.Preset:
        """A preset.

        Raises:
            UserError: if there is none of this name any more.
        """
        found = self.shipped.get(source) or (self.own().get(source) if source.startswith(OWN) else None)
        if found is None:
            raise UserError(f"There is no preset {source.partition(':')[2]!r}.", hint="Choose another one.")
        return found

    def preset_label(self, source: str) -> str:
        """What a preset is called in lists: the person's own say so."""
        name = source.partition(":")[2]
        return self.words("Yours: {name}", name=name) if source.startswith(OWN) else self.words(name)

    def preset_choices(self) -> list[tuple[str, str]]:
        """(text, source name) of every preset, the person's own first, for a list of choices."""
        names = [*self.own(), *self.shipped]
        return [(self.words("Choose a preset"), ""), *((self.preset_label(name), name) for name in names)]

    def groups(self, file: FileState, chosen: tuple[str, ...] = ()) -> list[tuple[str, list[tuple[str, str]]]]:
        """What can be compared: (heading, [(source name, label)]); `chosen` are in it even if nothing lists them."""
        words = self.words
        here = [(FORM, words("The form"))]
        if file.name:
            here.append((FILE, words("{name}, as opened", name=file.name)))
        here.append((DEFAULTS, words("The defaults")))
        files = [(PATH + str(path), path.name) for path in self._recent() if str(path) != file.path]
        jobs = [(JOB + view.id, view.name) for view in self._jobs()]
        groups = [
            (words("Here"), here),
            (words("Your presets"), [(name, preset.name) for name, preset in self.own().items()]),
            (words("Presets"), [(name, words(preset.name)) for name, preset in self.shipped.items()]),
            (words("Recent files"), files),
            (words("Jobs"), jobs),
        ]
        listed = {name for _, entries in groups for name, _ in entries}
        more = [(name, Path(name[len(PATH) :]).name) for name in chosen if name.startswith(PATH) and name not in listed]
        return [(title, entries) for title, entries in [*groups, (words("Other files"), more)] if entries]

    def get(self, source: str, file: FileState, current: Mapping[str, Any]) -> Source:
        """The configuration of a source name.

        Args:
            source: as `groups` gives them, or "path:" with any file inside the allowed folders.
            file: the session's configuration.
            current: what the form says.

        Raises:
            UserError: if it is not there any more, not allowed or cannot be read.
        """
        if source == FORM:
            return Source(source, self.words("The form"), current)
        if source == FILE:
            return Source(source, file.name or self.words("The defaults"), file.values)
        if source == DEFAULTS:
            return Source(source, self.words("The defaults"), {})
        if source.startswith((PRESET, OWN)):
            return Source(source, self.preset_label(source), self.preset(source).values)
        if source.startswith(PATH):
            path = self.services.roots.inside(source[len(PATH) :])
            return Source(source, path.name, configs.open_file(path, self.tab).values)
        if source.startswith(JOB):
            job = source[len(JOB) :]
            return Source(source, self.services.jobs.get(job).name, self.services.jobs.values(job))
        raise UserError("This configuration is not known any more.", hint="Choose another one.")

    def _recent(self) -> list[Path]:
        return recent.listed(self.services.remembered, self.tab, self.services.roots)

    def _jobs(self) -> list[JobView]:
        store, command = self.services.jobs, find_tab(self.tab).command
        fitting = (view for view in store.list() if store.spec(view.id).get("command") == command)
        return list(islice(fitting, MOST_JOBS))
