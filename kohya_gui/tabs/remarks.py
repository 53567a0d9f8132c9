"""Plain remarks under fields: what a value leads to, said where the value is typed."""

from collections.abc import Mapping
from typing import Any

from kohya_gui.checks import PlanView
from kohya_gui.dataset_view import FolderView
from kohya_gui.estimate import bytes_text
from kohya_gui.localization import Words
from kohya_gui.model_kind import model_facts

_WHOLE_FILES = ("network_dim", "num_vectors_per_token", "save_precision")


def remarks(view: PlanView, values: Mapping[str, Any], words: Words) -> dict[str, str]:
    """Option key -> sentence. Fields with an error or warning show that instead."""
    made = {"pretrained_model_name_or_path": _model(view, words)}
    for key in ("train_data_dir", "reg_data_dir", "in_json", "dataset_config"):
        made[key] = _pictures(view, key, words)
    made["conditioning_data_dir"] = _control(view, words)
    size = _size(view, words)
    made |= dict.fromkeys(_WHOLE_FILES, size)
    length = _length(view, values, words)
    if values.get("max_train_epochs"):
        made["max_train_steps"] = words("Not used: the epochs decide.")
    made["max_train_epochs" if values.get("max_train_epochs") else "max_train_steps"] = length
    return {key: text for key, text in made.items() if text}


def _model(view: PlanView, words: Words) -> str:
    # the plan's values hold no path that may not be looked at
    text = str(view.values.get("pretrained_model_name_or_path") or "")
    facts = model_facts(text) if text else None
    return words.said(facts.detail) if facts and facts.version != "unknown" and not facts.problem else ""


def _folders(view: PlanView, key: str) -> list[FolderView]:
    found = view.dataset.folders if view.dataset else []
    # pictures that a list is yet to be made of belong to their folder
    return [folder for folder in found if folder.key == key]


def _pictures(view: PlanView, key: str, words: Words) -> str:
    folders = _folders(view, key)
    if not folders:
        counting = view.counting and view.values.get(key)
        return words("The pictures are being counted.") if counting else ""
    count, found = sum(len(folder.pictures) for folder in folders), sum(folder.captions for folder in folders)
    if len(folders) == 1:
        name = folders[0].name
        if folders[0].metadata:
            return words("“{name}” with {n} pictures, {m} captions", name=name, n=f"{count:,}", m=f"{found:,}")
        text = words("1 folder: “{name}” with {n} pictures, {m} captions", name=name, n=count, m=found)
        return f"{text} ({folders[0].caption_extension})" if found else text
    return words("{k} folders with {n} pictures, {m} captions", k=len(folders), n=f"{count:,}", m=f"{found:,}")


def _control(view: PlanView, words: Words) -> str:
    folders = [folder for folder in (view.dataset.folders if view.dataset else []) if folder.control_dir]
    if not folders:
        return ""
    matched = sum(picture.control is not None for folder in folders for picture in folder.pictures)
    total = sum(len(folder.pictures) for folder in folders)
    return words("{n} of {m} pictures have one of the same name", n=f"{matched:,}", m=f"{total:,}")


def _size(view: PlanView, words: Words) -> str:
    final = next((item for item in reversed(view.writes) if not item.state and item.size), None)
    return words("Size of the file about {size}", size=bytes_text(final.size)) if final and final.size else ""


def _length(view: PlanView, values: Mapping[str, Any], words: Words) -> str:
    if not view.dataset or not view.dataset.images or not view.steps:
        return ""
    folders = [folder for folder in view.dataset.folders if not folder.regularisation]
    repeats = {folder.repeats for folder in folders}
    batch = view.dataset.batch_size
    if len(repeats) == 1 and not view.dataset.regular:
        facts = words("{n} pictures × {r} repeats × {e} epochs", n=view.images, r=repeats.pop(), e=view.epochs)
    else:
        facts = words("{n} showings × {e} epochs", n=f"{view.dataset.shown:,}", e=view.epochs)
    divided = f" ÷ {words('batch')} {batch}" if batch > 1 else ""
    return f"{facts}{divided} = {words('{n} steps', n=f'{view.steps:,}')}"
