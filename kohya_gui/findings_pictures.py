"""What is wrong with pictures, captions and control pictures, each beside the option that named them."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from kohya_gui.dataset_view import DatasetView, FolderView, control_of_other_shape
from kohya_gui.problem import Problem
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.folders import parse_class_folder
from sd_scripts.schema.values import parse_resolution

_CONTROL = "conditioning_data_dir"
_FEW_SHOWINGS = 2


def pictures(view: DatasetView, values: Mapping[str, Any], needs_control: bool = False) -> Iterator[Problem]:
    """Everything that is wrong with what was found.

    Args:
        view: the data set of these values.
        values: every option of the trainer.
        needs_control: whether each picture must have a control picture.
    """
    own_words = not (values.get("use_object_template") or values.get("use_style_template"))
    for folder in view.folders:
        yield from _readable(folder)
        yield from _level(folder)
        if own_words:
            yield from _without_caption(folder)
        yield from _control(folder, needs_control)
    yield from _regularisation(view, values)
    yield from _amount(view, values)
    yield from _sizes(view, values)


def _readable(folder: FolderView) -> Iterator[Problem]:
    damaged = [picture.name for picture in folder.pictures if "unreadable" in picture.problems]
    if damaged:
        text = f"{folder.name}: {some(damaged)} cannot be read, so the training would stop there."
        yield Problem("error", folder.key, text, "Replace them or take them out.")
    stems = [os.path.splitext(picture.name)[0] for picture in folder.pictures]
    doubles = sorted({stem for stem in stems if stems.count(stem) > 1}) if len(set(stems)) < len(stems) else []
    if doubles:
        hint = "Rename one of each: they share a caption and a cache file."
        yield Problem("warning", folder.key, f"{folder.name}: {some(doubles)} stand for two pictures each.", hint)
    if folder.metadata and any(picture.size and picture.placement is None for picture in folder.pictures):
        text = f"The resolution is missing, and {folder.name} does not name a training size for every picture."
        yield Problem("error", "resolution", text, "512 suits Stable Diffusion 1, 1024 suits XL.")


def _level(folder: FolderView) -> Iterator[Problem]:
    """A class folder chosen itself, instead of the folder above it: its number has no effect then."""
    named = parse_class_folder(folder.name)
    if not folder.flat or named is None or not named[1]:
        return
    parent = os.path.dirname(folder.path)
    text = f"{folder.name} was chosen itself, so each picture is shown once and not {named[0]} times as its name says."
    yield Problem("warning", folder.key, text, "Choose the folder above it.", {folder.key: parent})


def _without_caption(folder: FolderView) -> Iterator[Problem]:
    if folder.empty:
        text = f"{folder.name}: the captions of {some(list(folder.empty))} are empty."
        yield Problem("warning", folder.key, text, "Write words into them, or delete the files.")
    bare = [picture.name for picture in folder.pictures if not (picture.caption_path or picture.text)]
    if not bare:
        return
    if folder.regularisation:
        if not folder.class_tokens:
            text = f"{folder.name}: {some(bare)} regularisation pictures have no words at all."
            yield Problem("warning", folder.key, text, "Put them into a folder such as 1_dog, named after the class.")
        return
    ending = folder.caption_extension
    if folder.captions == 0 and folder.text_files and not folder.metadata:
        other, count = max(folder.text_files.items(), key=lambda item: item[1])
        text = f"{folder.name}: no {ending} files, but {count} {other} files."
        hint = f"Set the ending of caption files to {other}."
        yield Problem("warning", "caption_extension", text, hint, {"caption_extension": other})
        return
    instead = "they are trained without words"
    if folder.class_tokens:
        instead = f"the folder's words {folder.class_tokens!r} are used"
    who = "the pictures have" if len(bare) == len(folder.pictures) else f"{some(bare)} of {len(folder.pictures)} have"
    where = "" if folder.metadata else f" ({ending})"
    text = f"{folder.name}: {who} no caption{where}; {instead}."
    yield Problem("warning", folder.key, text, "Write captions, or leave it so on purpose.")


def _control(folder: FolderView, needed: bool) -> Iterator[Problem]:
    if not folder.control_dir or not os.path.isdir(folder.control_dir):
        return
    what = "control picture" if needed else "mask"
    bare = [picture.name for picture in folder.pictures if picture.control is None]
    if bare:
        text = f"{some(bare)} of {len(folder.pictures)} pictures have no {what} of the same name."
        yield Problem("error", _CONTROL, text, f"Add them to {os.path.basename(folder.control_dir)}, or take them out.")
    if folder.strangers:
        text = f"{some(list(folder.strangers))} in {os.path.basename(folder.control_dir)} belong to no picture."
        yield Problem("error", _CONTROL, text, "Take them out, or rename them as the pictures are named.")
    other = control_of_other_shape(folder)
    if other:
        text = f"The {what} of {some(other)} has another shape than the picture."
        yield Problem("error", _CONTROL, text, "Make it anew in the shape of the picture.")
    if os.path.realpath(folder.control_dir) == os.path.realpath(folder.path):
        text = "The control pictures are the pictures themselves, so there is nothing to learn."
        yield Problem("error" if needed else "warning", _CONTROL, text, "Choose the folder of edges, poses or depths.")


def _regularisation(view: DatasetView, values: Mapping[str, Any]) -> Iterator[Problem]:
    key, trained, regular = "reg_data_dir", values.get("train_data_dir"), values.get("reg_data_dir")
    if not trained or not regular or values.get("dataset_config"):
        return
    if os.path.realpath(str(trained)) == os.path.realpath(str(regular)):
        text = "The regularisation pictures are the training pictures, so training would undo itself."
        yield Problem("error", key, text, "Choose pictures of the class in general, or none.", {key: None})
        return
    classes = {_class(folder) for folder in view.folders if folder.regularisation and folder.class_tokens}
    wanted = {_class(folder) for folder in view.folders if not folder.regularisation and folder.class_tokens}
    if classes and wanted and not classes & wanted:
        text = f"No training folder belongs to the class of the regularisation pictures ({', '.join(sorted(classes))})."
        yield Problem("warning", key, text, "Name folders such as 10_sks dog and 1_dog after the same class.")


def _class(folder: FolderView) -> str:
    """The last word of a folder's name, which is the class: "sks dog" is a dog."""
    return folder.class_tokens.lower().split()[-1] if folder.class_tokens.split() else ""


def _amount(view: DatasetView, values: Mapping[str, Any]) -> Iterator[Problem]:
    trained = [folder for folder in view.folders if not folder.regularisation]
    key = trained[0].key if trained else "train_data_dir"
    if not view.folders:
        return
    if view.images == 0:
        if view.aside:
            text = "All pictures are kept for validation, so none is left to train on."
            yield Problem("error", "validation_split", text, "0.1 is usual.")
        elif not any(problem.severity == "error" for problem in view.problems):
            yield Problem("error", key, "There are no pictures to train with.", "Put pictures into the folder.")
        return
    if view.images == 1:
        text = "There is one picture only; the training would learn it by heart."
        yield Problem("warning", key, text, "Ten to thirty pictures are usual for a subject.")
    if float(values.get("validation_split") or 0) > 0 and not view.aside and not values.get("dataset_config"):
        text = "There are too few pictures to keep any for validation."
        yield Problem("warning", "validation_split", text, "Raise the share, or leave it at 0.")
    if 0 < view.shown * _FEW_SHOWINGS < view.batch_size:
        text = f"The batch of {view.batch_size} is larger than all {view.shown} showings of an epoch together."
        yield Problem("warning", "train_batch_size", text, "Lower it.", {"train_batch_size": max(view.shown // 2, 1)})


def _sizes(view: DatasetView, values: Mapping[str, Any]) -> Iterator[Problem]:
    """Pictures that are much smaller than what is trained are enlarged, and blurred by that."""
    if values.get("dataset_config") or values.get("bucket_no_upscale"):
        return
    known = [picture for folder in view.folders for picture in folder.pictures if picture.size]
    small = [picture.name for picture in known if "too small" in picture.problems and picture.placement]
    if not small:
        return
    try:
        width, height = parse_resolution(str(values.get("resolution")))
    except UserError:
        return
    text = f"{some(small)} of {len(known)} pictures are much smaller than {width}x{height} and would be enlarged."
    fix = {"bucket_no_upscale": True} if values.get("enable_bucket") else {}
    yield Problem("warning", "resolution", text, "Use larger pictures, a lower resolution, or don't enlarge.", fix)


def some(names: list[str]) -> str:
    """A number of names with the first three of them."""
    shown = ", ".join(names[:3])
    return f"{len(names)} ({shown}, ...)" if len(names) > 3 else f"{len(names)} ({shown})"
