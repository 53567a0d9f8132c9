"""Plain remarks under fields: what a value leads to, said where the value is typed."""

from collections.abc import Mapping
from typing import Any

from kohya_gui import findings
from kohya_gui.checks import PlanView
from kohya_gui.estimate import bytes_text
from kohya_gui.localization import Words


def remarks(view: PlanView, values: Mapping[str, Any], words: Words) -> dict[str, str]:
    """Option key -> sentence. Fields with an error or warning show that instead."""
    made = {
        "pretrained_model_name_or_path": _model(values),
        "train_data_dir": _pictures(view, words),
        "network_dim": _size(view, words),
    }
    length = _length(view, values, words)
    if values.get("max_train_epochs"):
        made["max_train_steps"] = words("Not used: the epochs decide.")
    made["max_train_epochs" if values.get("max_train_epochs") else "max_train_steps"] = length
    return {key: text for key, text in made.items() if text}


def _model(values: Mapping[str, Any]) -> str:
    text = str(values.get("pretrained_model_name_or_path") or "")
    if not text or findings.is_hub_id(text):
        return ""
    facts = findings.model_facts(text)
    return facts.detail if facts.version != "unknown" and not facts.problem else ""


def _pictures(view: PlanView, words: Words) -> str:
    folders = [folder for folder in view.dataset.folders if not folder.regularisation] if view.dataset else []
    if not folders:
        return ""
    count, found = sum(len(folder.pictures) for folder in folders), sum(folder.captions for folder in folders)
    if len(folders) == 1:
        text = words("1 folder: “{name}” with {n} pictures, {m} captions", name=folders[0].name, n=count, m=found)
        return f"{text} ({folders[0].caption_extension})" if found else text
    return words("{k} folders with {n} pictures, {m} captions", k=len(folders), n=f"{count:,}", m=f"{found:,}")


def _size(view: PlanView, words: Words) -> str:
    final = next((item for item in reversed(view.writes) if not item.state and item.size), None)
    return words("Size of the file about {size}", size=bytes_text(final.size)) if final and final.size else ""


def _length(view: PlanView, values: Mapping[str, Any], words: Words) -> str:
    if not view.dataset or not view.dataset.images or not view.steps:
        return ""
    folders = [folder for folder in view.dataset.folders if not folder.regularisation]
    repeats = {folder.repeats for folder in folders}
    batch = int(values.get("train_batch_size") or 1)
    if len(repeats) == 1:
        facts = words("{n} pictures × {r} repeats × {e} epochs", n=view.images, r=repeats.pop(), e=view.epochs)
    else:
        facts = words("{n} showings × {e} epochs", n=f"{view.dataset.shown:,}", e=view.epochs)
    divided = f" ÷ {words('batch')} {batch}" if batch > 1 else ""
    return f"{facts}{divided} = {words('{n} steps', n=f'{view.steps:,}')}"
