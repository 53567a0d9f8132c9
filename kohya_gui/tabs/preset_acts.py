"""What the dialog of presets asks for: save, rename, delete and bring back the person's own presets."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kohya_gui import user_presets
from kohya_gui.form import Form
from kohya_gui.services import Services
from kohya_gui.tabs import preset_sheet
from kohya_gui.tabs.message import channel, tell
from kohya_gui.tabs.preset_sheet import Draft
from kohya_gui.tabs.sources import OWN, FileState, Sources
from kohya_gui.user_presets import TakenError
from sd_scripts.schema.errors import UserError

Asked = Mapping[str, Any]


class PresetActs:
    """The person's presets of one training tab; sessions share it, so it holds no state."""

    def __init__(self, tab: str, form: Form, services: Services, sources: Sources) -> None:
        self.tab = tab
        self.form = form
        self.home = services.home
        self.words = services.words
        self.sources = sources
        self.acts: dict[str, Callable[[Asked, FileState, Asked], tuple[Draft, FileState | None]]] = {
            "preset_save": self._save,
            "preset_renaming": lambda asked, file, values: (Draft(renaming=str(asked.get("about", ""))), None),
            "preset_rename": self._rename,
            "preset_delete": self._delete,
            "preset_back": self._bring_back,
        }

    def act(self, asked: Asked, file: FileState, values: Asked) -> tuple[dict[str, Any], FileState | None]:
        """The message that shows the dialog again, and the session's configuration if that changed.

        Args:
            asked: what the dialog sent; `do` names the act.
            file: the session's configuration.
            values: what the form says.
        """
        try:
            draft, changed = self.acts[str(asked.get("do"))](asked, file, values)
        except UserError as error:
            draft, changed = replace(_typed(asked), said=self.words.error(error), wrong=True), None
        return self.message(draft), changed

    def message(self, draft: Draft) -> dict[str, Any]:
        """The message that shows the dialog."""
        html = preset_sheet.sheet(self.tab, self.sources.own(), self.sources.shipped, draft, self.words)
        return channel(sheet={"title": self.words("Presets"), "html": html}, later=True)

    def _save(self, asked: Asked, file: FileState, values: Asked) -> tuple[Draft, FileState | None]:
        typed = _typed(asked)
        chosen = user_presets.recipe(self.tab, self.form.applicable(values), places=typed.places)
        try:
            made = user_presets.save(
                self.home, self.tab, typed.name, typed.description, chosen, replace=bool(asked.get("sureNow"))
            )
        except TakenError as error:
            said = self.words.error(error)
            return replace(typed, said=said, wrong=True, offer=self.words("Replace it"), offer_ask="preset_save"), None
        tell(self.words("Saved as {name}.", name=made.name))
        return Draft(said=self.words("{name} is saved, {n} settings.", name=made.name, n=len(chosen))), None

    def _rename(self, asked: Asked, file: FileState, values: Asked) -> tuple[Draft, FileState | None]:
        source = str(asked.get("about", ""))
        try:
            new = user_presets.rename(self.home, self.tab, _name(source), str(asked.get("new_name", "")))
        except UserError as error:
            return Draft(said=self.words.error(error), wrong=True, renaming=source), None
        changed = replace(file, name=new, preset=OWN + new) if file.preset == source else None
        return Draft(said=self.words("It is called {name} now.", name=new)), changed

    def _delete(self, asked: Asked, file: FileState, values: Asked) -> tuple[Draft, FileState | None]:
        name = _name(str(asked.get("about", "")))
        user_presets.delete(self.home, self.tab, name)
        said = self.words("{name} is deleted.", name=name)
        return Draft(said=said, offer=self.words("Undo"), offer_ask="preset_back", offer_name=OWN + name), None

    def _bring_back(self, asked: Asked, file: FileState, values: Asked) -> tuple[Draft, FileState | None]:
        name = _name(str(asked.get("about", "")))
        user_presets.bring_back(self.home, self.tab, name)
        return Draft(said=self.words("{name} is back.", name=name)), None


def _typed(asked: Asked) -> Draft:
    return Draft(
        name=str(asked.get("name") or ""),
        description=str(asked.get("description") or ""),
        places=asked.get("places") is True,
    )


def _name(source: str) -> str:
    """The name in the source name of one of the person's presets.

    Raises:
        UserError: for any other.
    """
    if not source.startswith(OWN):
        raise UserError("Only your own presets can be changed.", hint="Save the form as a preset of yours first.")
    return source[len(OWN) :]
