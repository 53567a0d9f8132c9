"""What tests that go through all ten trainers share: pictures for every kind of data set, and options of each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from control_kit import draw_edges

TOKEN = {"token_string": "newword", "init_word": "cat", "use_object_template": True, "save_model_as": "safetensors"}
XL = {"bucket_reso_steps": 32}
WHOLE = {"save_model_as": "safetensors", "learning_rate": 1e-4}
# What each trainer cannot do without, and sizes small enough for a test.
TRAINERS: dict[str, dict[str, Any]] = {
    "train_network": {},
    "sdxl_train_network": XL,
    "train_db": WHOLE,
    "fine_tune": {**WHOLE, "in_json": True, "dataset_repeats": 2},
    "sdxl_train": {**WHOLE, **XL},
    "train_textual_inversion": {**TOKEN, "num_vectors_per_token": 2},
    "train_textual_inversion_XTI": TOKEN,
    "sdxl_train_textual_inversion": {**TOKEN, **XL},
    "train_controlnet": {"conditioning_data_dir": True},
    "sdxl_train_control_net_lllite": {**XL, "conditioning_data_dir": True, "network_dim": 8, "cond_emb_dim": 8},
}


def draw_all(thumbs: Path, folder: Path) -> Path:
    """Photographs in class folders, their edges, and a metadata file, in `folder`; returns it."""
    shutil.copytree(thumbs / "2_photo", folder / "photos" / "2_photo")
    found = sorted((folder / "photos" / "2_photo").glob("*.png"))
    draw_edges(folder / "photos" / "2_photo", folder / "edges")
    entries = {path.stem: {"caption": path.with_suffix(".txt").read_text(encoding="utf-8")} for path in found}
    (folder / "metadata.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


def options_of(command: str, pictures: Path, **more: Any) -> tuple[Path, dict[str, Any]]:
    """The folder of the pictures that `draw_all` made for a trainer, and its options with `more` of them."""
    options = {**TRAINERS[command], **more}
    folder = pictures / "photos"
    if "in_json" in options:
        options |= {"in_json": pictures / "metadata.json", "caption_extension": None}
        folder = folder / "2_photo"
    if "conditioning_data_dir" in options:
        options["conditioning_data_dir"] = pictures / "edges"
        folder = folder / "2_photo"
    return folder, options
