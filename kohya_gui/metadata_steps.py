"""Finetune's metadata: the programs that make it before the training, and which of the files the trainer reads."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd_scripts.schema.errors import UserError

SCRIPTS = Path(__file__).resolve().parent.parent / "sd_scripts" / "finetune"
_NO_NAME = re.compile(r'[/\\:*?"<>|\x00-\x1f]')
_USUAL_SIZE = "512,512"


def metadata_files(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """Paths of the lists with captions and with training sizes; None where the form asks for no such lists.

    Raises:
        UserError: if one of their names is no plain name of a file.
    """
    folder = values.get("train_dir")
    if not folder or values.get("in_json") or values.get("dataset_config"):
        return None
    paths = []
    for key in ("caption_metadata_filename", "latent_metadata_filename"):
        name = str(values[key])
        # with another ending the list could take a program's place
        strange = os.path.splitext(name)[1].lower() not in ("", ".json")
        if _NO_NAME.search(name) or name.strip(". ") != name or not name or strange:
            raise UserError(f"{name!r} is no name for a file.", key, "Give a plain name such as meta.json.")
        paths.append(os.path.join(str(folder), name))
    return paths[0], paths[1]


def use_metadata(full: dict[str, Any]) -> None:
    """Set the trainer's metadata file from the folder and names of the form.

    Pictures were cut to their own shapes while it was made, so the trainer has to read them in these shapes.

    Raises:
        UserError: as `metadata_files`.
    """
    files = metadata_files(full)
    if files is not None:
        full["in_json"] = files[1] if full["use_latent_files"] else files[0]
        full["enable_bucket"] = True


def programs(values: Mapping[str, Any], notes: list[str]) -> list[tuple[str, list[str]]]:
    """What runs before the training: (name for people, argv) in order.

    Args:
        values: all options, before `use_metadata`.
        notes: a sentence is added if something is missing for it.

    Raises:
        UserError: as `metadata_files`, or for a path that no command line can carry.
    """
    files = metadata_files(values)
    pictures, model = values.get("train_data_dir"), values.get("pretrained_model_name_or_path")
    if files is None or not (values["create_caption"] or values["create_buckets"]):
        return []
    if not pictures or (values["create_buckets"] and not model):
        notes.append("The lists cannot be made before the training without picture folder and base model.")
        return []
    for key in ("train_data_dir", "train_dir", "pretrained_model_name_or_path"):
        if any(ord(sign) < 32 for sign in str(values.get(key) or "")):
            raise UserError(f"{values[key]!r} holds a control character.", key, "Rename it.")
    found = []
    if values["create_caption"]:
        found.append(("collect captions", _captions(values, str(pictures), files[0])))
    if values["create_buckets"]:
        found.append(("choose sizes and encode", _buckets(values, str(pictures), files, str(model))))
    return found


def _captions(values: Mapping[str, Any], pictures: str, target: str) -> list[str]:
    ending = values.get("caption_extention") or values["caption_extension"] or ".caption"
    flags = [f"--caption_extension={ending}", *(["--full_path"] if values["full_path"] else [])]
    return [sys.executable, str(SCRIPTS / "merge_captions_to_metadata.py"), *flags, "--", pictures, target]


def _buckets(values: Mapping[str, Any], pictures: str, files: tuple[str, str], model: str) -> list[str]:
    # the VAE of SDXL gives no numbers in 16 bits unless it is a repaired one
    precision = "no" if values.get("no_half_vae") else values["mixed_precision"]
    flags = [
        f"--batch_size={values['batch_size']}",
        f"--max_resolution={values.get('resolution') or _USUAL_SIZE}",
        f"--min_bucket_reso={values['min_bucket_reso']}",
        f"--max_bucket_reso={values['max_bucket_reso']}",
        f"--bucket_reso_steps={values['bucket_reso_steps']}",
        f"--mixed_precision={precision}",
    ]
    for key in ("bucket_no_upscale", "full_path", "flip_aug"):
        flags += [f"--{key}"] if values.get(key) else []
    places = [pictures, *files, values.get("vae") or model]
    return [sys.executable, str(SCRIPTS / "prepare_buckets_latents.py"), *flags, "--", *map(str, places)]
