"""Make saved settings fit to be shared: `python sd_scripts/tools/prepare_presets.py settings.json more/*.json`."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools import PreparePresetsOptions
from sd_scripts.tools.common import run, say
from sd_scripts.tools.files import write_text

PROG = "prepare_presets.py"
OPTIONS = PreparePresetsOptions
PERSONAL = (
    "dir", "image_folder", "pretrained_model_name_or_path", "model_list", "output_name", "resume", "sample_",
    "caption_metadata_filename", "latent_metadata_filename", "save_model_as", "save_state", "wandb_api_key",
    "huggingface_token", "in_json", "dataset_config", "config_file", "network_weights", "base_weights",
)  # fmt: skip
"""Parts of keys whose values belong to one person or one computer."""


def shared(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without what is personal, by name."""
    return {key: settings[key] for key in sorted(settings) if not any(part in key for part in PERSONAL)}


def files(patterns: Sequence[str]) -> list[Path]:
    """The files that patterns name; a name with brackets of its own is taken as it is. Raises UserError for none."""
    found: list[Path] = []
    for pattern in patterns:
        named = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        if not named:
            raise UserError(f"There is no file {pattern}.", "json_files")
        found += [Path(name) for name in named]
    return list(dict.fromkeys(found))


def work(options: PreparePresetsOptions) -> None:
    """Rewrite the files, after all of them could be read. Raises UserError."""
    contents: dict[Path, dict[str, Any]] = {}
    for path in files(options.json_files):
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise UserError(f"{path} is no settings file: {error}.", "json_files") from error
        if not isinstance(content, dict):
            raise UserError(f"{path} is no settings file: it must be an object.", "json_files")
        contents[path] = content
    for path, content in contents.items():
        kept = shared(content)
        write_text(path, json.dumps(kept, indent=4))
        say(f"{path}: {len(content) - len(kept)} of {len(content)} settings taken out")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
