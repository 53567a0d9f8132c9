"""The person's own presets: one file each in `<home>/user_presets/<tab>`, saved, renamed, deleted and brought back.

A preset is a recipe: folders, file names, names of results and prompts stay out of it unless they are asked for, and
secrets always do. Names that come from a page are plain names or refused.
"""

import contextlib
import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kohya_gui import configs
from kohya_gui.paths import DEVICES
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.option import OptionField
from sd_scripts.schema.suggest import nearest
from sd_scripts.schema.tabs import find_tab, tab_fields

FOLDER = "user_presets"
_DELETED = ".deleted"
LONGEST_NAME = 80
LONGEST_DESCRIPTION = 4000
MOST_PRESETS = 500
_PATHS = ("file", "folder", "model")
# what one set of pictures or one person has, and no recipe can know
_PERSONAL = frozenset(
    (
        "output_name", "sample_prompt_text", "training_comment", "token_string", "init_word", "wandb_run_name",
        "log_tracker_name", "log_prefix", "base_weights", "base_weights_multiplier", "main_process_ip",
    )
)  # fmt: skip
_PERSONAL_STARTS = ("metadata_", "huggingface_")


class TakenError(UserError):
    """There is a preset of this name already."""


def is_personal(key: str, option: OptionField) -> bool:
    """Whether an option holds a place, a name or a text of the person, which a preset leaves alone."""
    return option.kind in _PATHS or key in _PERSONAL or key.startswith(_PERSONAL_STARTS)


def recipe(tab: str, values: Mapping[str, Any], *, places: bool = False) -> dict[str, Any]:
    """What of a form's values goes into a preset: all that differs from the defaults, without secrets.

    Args:
        tab: the training tab.
        values: the form's values; those that do not apply should be left out before.
        places: keep folders, files, names and prompts too.
    """
    known = tab_fields(tab)
    return {
        key: value
        for key, value in values.items()
        if key in known
        and known[key].kind != "secret"
        and (places or not is_personal(key, known[key]))
        and value != known[key].default
        and not (value in (None, "") and known[key].default in (None, ""))
    }


def clean_name(name: str) -> str:
    """The name of a preset as it may stand in a folder of any system.

    Raises:
        UserError: for an empty or long name, signs of paths, control characters, hidden files, names of devices.
    """
    plain = unicodedata.normalize("NFC", " ".join(name.split()))
    if not plain:
        raise UserError("The preset needs a name.", hint="Type one, such as: my portraits.")
    if len(plain) > LONGEST_NAME or len(plain.encode("utf-8", "replace")) > 2 * LONGEST_NAME:
        raise UserError(f"The name of the preset is longer than {LONGEST_NAME} signs.", hint="Shorten it.")
    bad = next((sign for sign in plain if sign in '/\\:*?"<>|' or not sign.isprintable()), "")
    if bad:
        raise UserError(f"The name of the preset holds {bad!r}, which no file name may.", hint="Leave it out.")
    if plain.startswith(".") or plain.endswith("."):
        raise UserError("The name of a preset neither begins nor ends with a dot.", hint="Leave it out.")
    if DEVICES.match(plain):
        raise UserError(f"{plain!r} is the name of a device, not of a file.", hint="Choose another name.")
    return plain


def folder_of(home: Path, tab: str) -> Path:
    """Where the person's presets of a tab lie.

    Raises:
        UserError: for an unknown tab.
    """
    return home / FOLDER / find_tab(tab).name


def listed(home: Path, tab: str) -> list[configs.Preset]:
    """The person's presets of a tab, by name; files that cannot be read are left out."""
    folder, found = folder_of(home, tab), []
    for path in sorted(folder.glob("*.json"), key=lambda each: each.stem.casefold())[:MOST_PRESETS]:
        if path.name.startswith(".") or path.is_symlink():
            continue
        with contextlib.suppress(UserError):
            opened = configs.open_file(path, tab)
            if not opened.partial:
                found.append(configs.Preset(path.stem, path, opened.description, opened.values))
    return found


def find(home: Path, name: str, tabs: Iterable[str]) -> tuple[str, configs.Preset]:
    """The preset of this name, whatever the case, and its tab; one's own goes before one that came with the project.

    Raises:
        UserError: if there is none, or several tabs have one.
    """
    known = {tab: [*listed(home, tab), *configs.presets(tab)] for tab in tabs}
    found = [(tab, each) for tab, all_of in known.items() for each in all_of if each.name.casefold() == name.casefold()]
    if not found:
        names = [each.name for all_of in known.values() for each in all_of]
        raise UserError(f"There is no preset {name[:100]!r}.", hint=nearest(name, names))
    having = list(dict.fromkeys(tab for tab, _ in found))
    if len(having) > 1:
        raise UserError(f"{name!r} is a preset of several tabs: {', '.join(having)}.", hint="Say which with --tab.")
    return found[0]


def save(
    home: Path, tab: str, name: str, description: str, values: Mapping[str, Any], *, replace: bool = False
) -> configs.Preset:
    """Write a preset; the file is the old one or the new one, never half of it.

    Args:
        home: the page's own folder.
        tab: the training tab.
        name: as typed.
        description: for whom and what for.
        values: what `recipe` gave.
        replace: write over a preset of this name.

    Raises:
        TakenError: if the name is taken and `replace` is not asked for.
        UserError: for a name that cannot be, or if the disk takes no more.
    """
    plain = clean_name(name)
    text = " ".join(description.split())
    if len(text) > LONGEST_DESCRIPTION:
        raise UserError(f"The description is longer than {LONGEST_DESCRIPTION} signs.", hint="Shorten it.")
    there = _existing(home, tab, plain)
    if there is not None and not replace:
        raise TakenError(f"There is a preset {there.stem!r} already.", hint="Choose another name, or replace it.")
    if there is None and len(list(folder_of(home, tab).glob("*.json"))) >= MOST_PRESETS:
        raise UserError(f"There are already {MOST_PRESETS} presets.", hint="Delete some.")
    path = there or folder_of(home, tab) / f"{plain}.json"
    configs.write_file(path, configs.save_text(tab, values, description=text))
    return configs.Preset(path.stem, path, text, dict(values))


def rename(home: Path, tab: str, name: str, new: str) -> str:
    """Give a preset another name, which is returned.

    Raises:
        TakenError: if another preset has it.
        UserError: if there is no such preset, or the new name cannot be.
    """
    path, plain = _found(home, tab, name), clean_name(new)
    there = _existing(home, tab, plain)
    if there is not None and there != path:
        raise TakenError(f"There is a preset {there.stem!r} already.", hint="Choose another name.")
    _move(path, path.with_name(f"{plain}.json"), over=there == path)
    return plain


def delete(home: Path, tab: str, name: str) -> None:
    """Put a preset aside; `bring_back` undoes it until another of the same name is deleted.

    Raises:
        UserError: if there is no such preset, or it cannot be moved.
    """
    path = _found(home, tab, name)
    _move(path, _aside(home, tab, path.stem), over=True)


def bring_back(home: Path, tab: str, name: str) -> None:
    """Undo `delete`.

    Raises:
        TakenError: if there is a preset of this name again.
        UserError: if none of this name was deleted.
    """
    plain = clean_name(name)
    aside = _aside(home, tab, plain)
    if not aside.is_file():
        raise UserError(f"There is no deleted preset {plain!r}.")
    if _existing(home, tab, plain) is not None:
        raise TakenError(f"There is a preset {plain!r} already.", hint="Rename that one first.")
    _move(aside, folder_of(home, tab) / aside.name)


def _aside(home: Path, tab: str, name: str) -> Path:
    return home / FOLDER / _DELETED / find_tab(tab).name / f"{name}.json"


def _existing(home: Path, tab: str, name: str) -> Path | None:
    """The preset that has this name, whatever the case: some disks do not tell them apart."""
    wanted = name.casefold()
    return next((path for path in folder_of(home, tab).glob("*.json") if path.stem.casefold() == wanted), None)


def _found(home: Path, tab: str, name: str) -> Path:
    path = _existing(home, tab, clean_name(name))
    if path is None:
        raise UserError(f"There is no preset {name!r} of yours.", hint="It may have been renamed or deleted.")
    return path


def _move(path: Path, target: Path, *, over: bool = False) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if over:
            os.replace(path, target)
        else:
            # a link fails where the name was taken a moment ago, and a plain renaming would not
            try:
                os.link(path, target)
            except FileExistsError as error:
                raise TakenError(f"There is a preset {target.stem!r} already.", hint="Choose another name.") from error
            except OSError:
                os.rename(path, target)
                return
            path.unlink()
    except OSError as error:
        raise UserError(f"{path.name} cannot be moved: {error.strerror}.") from error
