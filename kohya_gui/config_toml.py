"""The settings file config.toml: which keys mean something, reading it, and changing it without losing the others.

The tables are those of kohya_ss v26; `defaults.<tab>`, `start_folders` and a few keys of `settings` are our own.
"""

import threading
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from kohya_gui.whole_file import write_whole
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tabs import TABS
from sd_scripts.schema.tools_captions import TaggerOptions
from sd_scripts.schema.tools_preparation import FolderPreparationOptions

ALL_TABS = tuple(TABS)
FOR_TABS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("model", "folders", "accelerate_launch", "basic", "advanced", "samples", "sdxl", "save", "metadata"), ALL_TABS
    ),
    "huggingface": ALL_TABS,
    "network": ("lora",),
    "training": ("lora",),
}
"""Table -> the tabs whose options its keys are, in the order in which they count."""

PREFIXED: Mapping[str, tuple[str, ...]] = {
    "metadata": ("title", "author", "description", "license", "tags"),
    "huggingface": ("repo_id", "token", "repo_type", "repo_visibility", "path_in_repo"),
}
"""Table -> keys that are options with the table's name before them."""

START_FOLDERS: Mapping[str, str] = {
    "model.models_dir": "pretrained_model_name_or_path",
    "advanced.vae_dir": "vae",
    "advanced.state_dir": "resume",
    "advanced.log_tracker_config_dir": "log_tracker_config",
    "log_tracker_config_dir": "log_tracker_config",
    "config_dir": "@open",
    "configuration.config_dir": "@open",
}
"""Key -> the field whose dialog begins in this folder; @open is the dialog that opens configurations."""

FAMILY_TABLES: Mapping[str, str] = {
    "flux1": "Flux",
    "sd3": "Stable Diffusion 3",
    "hunyuan_image": "Hunyuan",
    "anima": "Anima",
    "lumina": "Lumina",
    "leco": "LECO",
    "anima_lllite": "Anima",
}
"""Tables of models and training that are not here."""

TOOL_TABLES: Mapping[str, type] = {
    "dataset_preparation": FolderPreparationOptions,
    "wd14_caption": TaggerOptions,
}
"""Tables with first values of tools beside the training, and the tools' options."""

TOOL_KEYS: Mapping[str, Mapping[str, str]] = {
    "dataset_preparation": {
        "class_prompt": "util_class_prompt_input",
        "instance_prompt": "util_instance_prompt_input",
        "images_folder": "util_training_images_dir_input",
        "reg_images_folder": "util_regularization_images_dir_input",
        "reg_images_repeat": "util_regularization_images_repeat_input",
    },
    "wd14_caption": {"caption_postfix": "postfix"},
}
"""Their keys that have another name here."""

WITHOUT_EFFECT: Mapping[str, str] = {
    "settings.use_shell": "programs are always started without a shell",
    "advanced.lowvram": "it never had an effect",
    "advanced.blocks_to_swap": "swapping blocks is only for the newer, larger model families",
    "advanced.show_timesteps": "only the newer model families ever used it",
    "advanced.show_timesteps_resolution": "only the newer model families ever used it",
    "basic.train_inpainting": "training of inpainting models is not offered",
    "sdxl.disable_mmap_load_safetensors": "files are read in the way that suits the machine",
    "wd14_caption.use_quality_tags": "no tagger here tells the quality",
    "wd14_caption.use_quality_tags_as_last_tag": "no tagger here tells the quality",
    "sdxl.fused_optimizer_groups": "fused_backward_pass saves the same memory with every weight on its own",
}
"""Known keys that change nothing here, with the reason."""

MOST_BYTES = 1_000_000
_LOCK = threading.Lock()


def read(path: Path) -> dict[str, Any]:
    """What the file says; a missing one says nothing.

    Raises:
        UserError: if it is there but cannot be read as TOML.
    """
    try:
        if not path.is_file():
            return {}
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"The settings file {path} is far too large.", hint="Choose another one with --config.")
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        hint = "Write Windows paths in single quotes, as 'C:\\pictures'."
        raise UserError(f"The settings file {path} cannot be read: {error}.", hint=hint) from error


def change(path: Path, act: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Change the file: it is the old one or the new one, and tables that mean nothing here stay.

    A file with comments, which a program cannot keep, stays beside it as `config.toml.bak`.

    Raises:
        UserError: if it cannot be read or written.
    """
    with _LOCK:
        content = read(path)
        act(content)
        try:
            _keep_comments(path)
            write_whole(path, tomli_w.dumps(content).encode())
        except OSError as error:
            raise UserError(f"The settings file {path} cannot be written: {error.strerror}.") from error
        return content


def _keep_comments(path: Path) -> None:
    backup = path.with_name(f"{path.name}.bak")
    if not path.is_file() or backup.exists():
        return
    text = path.read_bytes()
    if any(line.lstrip().startswith(b"#") for line in text.splitlines()):
        backup.write_bytes(text)


def table(content: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A table inside tables; empty if it is missing or no table."""
    found: Any = content
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def put(content: dict[str, Any], names: tuple[str, ...], value: Any) -> None:
    """Set a value inside tables, making them; None takes it away, and tables that are empty then."""
    if len(names) == 1:
        if value is None:
            content.pop(names[0], None)
        else:
            content[names[0]] = value
        return
    inner = table(content, names[0])
    put(inner, names[1:], value)
    if inner:
        content[names[0]] = inner
    else:
        content.pop(names[0], None)
