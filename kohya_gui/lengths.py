"""How long a training takes, worked out from what a form or an old file says: steps, warm-up, the text encoder's share.

The numbers are those that the kohya_ss pages give, except where these are at odds with the epochs asked for.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.folders import IMAGE_EXTENSIONS, scan_class_folders


def work_out(given: dict[str, Any], notes: list[str], shown: int | None) -> None:
    """Set the steps from the old epochs field, and the steps of warm-up from a percentage.

    Args:
        given: the values.
        notes: what was worked out is said here.
        shown: pictures times repeats, as `shown_pictures` gives it.
    """
    epoch = given.get("epoch")
    if epoch and not given.get("max_train_steps") and not given.get("max_train_epochs"):
        if shown:
            given["max_train_steps"] = steps_of(given, shown, int(epoch))
            notes.append(f"{given['max_train_steps']} steps, worked out from {epoch} epochs of {shown} pictures.")
        elif given.get("dataset_config"):
            # kohya_ss never counted described datasets: the trainer's own number of steps held
            notes.append("No steps are given: the usual number holds. Give epochs or steps to change it.")
        else:
            given["max_train_epochs"] = int(epoch)
    percent = given.get("lr_warmup")
    if percent and not given.get("lr_warmup_steps"):
        if given.get("max_train_steps") and not given.get("max_train_epochs"):
            given["lr_warmup_steps"] = round(float(percent) * int(given["max_train_steps"]) / 100)
        else:
            # from 1 on the trainer reads steps, below it a share
            given["lr_warmup_steps"] = min(float(percent) / 100, 0.9999)


def text_encoder_stop(given: dict[str, Any], shown: int | None, default_steps: int) -> None:
    """Set the step after which DreamBooth's text encoder rests from the percentage of all steps.

    Args:
        given: the values; a number of steps in them goes before the percentage.
        shown: pictures times repeats, as `shown_pictures` gives it.
        default_steps: how long the trainer trains where nothing is said.

    Raises:
        UserError: if the number of all steps cannot be told.
    """
    percent = given.get("stop_text_encoder_percent")
    if not percent or given.get("stop_text_encoder_training") is not None:
        return
    if percent < 100:
        steps = int(given.get("max_train_steps") or default_steps)
        if given.get("max_train_epochs"):
            steps = steps_of(given, shown, int(given["max_train_epochs"])) if shown else 0
        if not steps:
            raise UserError(
                "The steps of the training cannot be counted here, so no share of them can be told.",
                "stop_text_encoder_percent",
                "Give the number of steps after which the text encoder rests instead.",
            )
        given["stop_text_encoder_training"] = math.ceil(steps / 100 * percent)


def steps_of(values: Mapping[str, Any], shown: int, epochs: int) -> int:
    """Steps of so many epochs of `shown` pictures, without regard to buckets."""
    share = shown / int(values.get("train_batch_size", 1)) / int(values.get("gradient_accumulation_steps", 1))
    return math.ceil(share * epochs * (2 if values.get("reg_data_dir") else 1))


def shown_pictures(values: Mapping[str, Any], allowed: Callable[[str], bool] | None = None) -> int | None:
    """Pictures times repeats of the training folder; None if they cannot be counted from names of files.

    Args:
        values: the values.
        allowed: says of a path whether it may be looked at; None allows all.
    """
    folder = values.get("train_data_dir")
    if values.get("dataset_config") or not folder or (allowed is not None and not allowed(str(folder))):
        return None
    if values.get("train_dir"):
        # Finetune lists all pictures of the folder, and repeats them all alike
        return _pictures(Path(str(folder))) * int(values.get("dataset_repeats", 1)) or None
    if values.get("in_json"):
        return None
    try:
        folders = scan_class_folders(str(folder), str(values.get("caption_extension", ".caption")))
    except UserError:
        return None
    return sum(found.repeats * len(found.images) for found in folders) or None


def _pictures(folder: Path) -> int:
    try:
        return sum(1 for path in folder.iterdir() if path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file())
    except OSError:
        return 0
