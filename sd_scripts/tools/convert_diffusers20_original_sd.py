"""Convert models: `python sd_scripts/tools/convert_diffusers20_original_sd.py <model to load> <model to save>`."""

from __future__ import annotations

import ast
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.headers import identify
from sd_scripts.schema.tools import ConvertModelOptions
from sd_scripts.tools.common import run, say
from sd_scripts.tools.files import refuse_existing

if TYPE_CHECKING:
    import torch

    from sd_scripts.models.build import LoadedModel

PROG = "convert_diffusers20_original_sd.py"
OPTIONS = ConvertModelOptions
_ENDINGS = (".safetensors", ".ckpt")
_MISTAKEN = (".pt", ".pth", ".bin", ".safetensor", ".sft")
_VARIANT_FILES = ("*.json", "*/*.json", "*/*.txt")


def parse_metadata(text: str | None) -> dict[str, str]:
    """Notes from JSON or a Python dictionary. Raises UserError where the text is neither."""
    if not text:
        return {}
    content: Any = None
    for read in (json.loads, ast.literal_eval):
        try:
            content = read(text)
            break
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    if not isinstance(content, dict):
        raise UserError(f"metadata is {text!r}, which is no object.", "metadata", 'Write it as {"key": "value"}.')
    return {str(key): value if isinstance(value, str) else json.dumps(value) for key, value in content.items()}


def saving_type(options: ConvertModelOptions) -> torch.dtype | None:
    """The number format asked for, None for as it is. Raises UserError for several."""
    import torch

    asked = {name for name in ("fp16", "bf16", "float") if getattr(options, name)}
    if options.save_precision_as != "no":
        asked.add(options.save_precision_as)
    if len(asked) > 1:
        raise UserError(f"Two number formats are asked for: {' and '.join(sorted(asked))}.", "save_precision_as")
    known = {"fp16": torch.float16, "bf16": torch.bfloat16, "float": torch.float32}
    return known[asked.pop()] if asked else None


@contextmanager
def source_of(options: ConvertModelOptions) -> Iterator[Path]:
    """The file or folder to read; of a hub model its local copy, of a variant a folder that shows only that.

    Raises:
        UserError: there is nothing of that name, or no such variant.
    """
    from sd_scripts.models.folder import hub_folder, is_hub_id

    path = Path(options.model_to_load)
    if not path.exists() and is_hub_id(options.model_to_load):
        if options.variant:
            path = _hub_variant(options.model_to_load, options.variant)
        else:
            path = hub_folder(options.model_to_load, key="model_to_load")
    if not path.exists():
        raise UserError(
            f"There is no model at {path}.", "model_to_load", "Give a file, a diffusers folder or a hub id."
        )
    if options.variant and path.is_dir():
        with variant_view(path, options.variant) as view:
            yield view
    else:
        yield path


def _hub_variant(name: str, variant: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[*_VARIANT_FILES, f"*/*.{variant}.*"]))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"The hub model {name} cannot be fetched: {str(error).splitlines()[0]}", "model_to_load"
        ) from error


@contextmanager
def variant_view(folder: Path, variant: str) -> Iterator[Path]:
    """A temporary folder beside the model with its configurations and, under their usual names, one variant's weights.

    Raises:
        UserError: there are no weights of that variant.
    """
    view = folder.with_name(f".{folder.name}.{os.getpid()}.{variant}")
    found = 0
    try:
        for path in sorted(folder.rglob("*")):
            target = view / path.relative_to(folder)
            if not path.is_file():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in (".json", ".txt"):
                shutil.copyfile(path, target)
            elif f".{variant}." in path.name and path.suffix in (".safetensors", ".bin"):
                _link(path, target.with_name(path.name.replace(f".{variant}.", ".")))
                found += 1
        if not found:
            raise UserError(f"{folder} has no weights of the variant {variant!r}.", "variant")
        yield view
    finally:
        shutil.rmtree(view, ignore_errors=True)


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path.resolve(), target)
    except OSError:
        shutil.copyfile(path, target)  # another disk, or a file system without links


def load(path: Path, options: ConvertModelOptions) -> LoadedModel:
    """The model with its weights as they are stored. Raises UserError for another kind than --v1 or --v2 say."""
    from sd_scripts.models.loading import load_sd, load_sdxl
    from sd_scripts.models.weights import open_weights
    from sd_scripts.schema.headers import single_file_version
    from sd_scripts.schema.model import ModelOptions

    if options.v1 and options.v2:
        raise UserError("v1 and v2 are both on.", "v1", "Give one, or none: the file says what it is.")
    facts = identify(str(path))
    if facts.problem:
        raise UserError(f"{path} cannot be read: {facts.problem}.", "model_to_load")
    version = facts.version
    if facts.kind == "pickle":
        version = single_file_version(open_weights(path, "model_to_load").shapes)
    asked = "sd1" if options.v1 else "sd2" if options.v2 else ""
    names = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
    if asked and version in names and version != asked:
        raise UserError(f"{path} is {names[version]}, not {names[asked]}.", "v1" if options.v1 else "v2")
    model_options = ModelOptions(pretrained_model_name_or_path=str(path), v2=version == "sd2")
    return (load_sdxl if version == "sdxl" else load_sd)(model_options, None)


def work(options: ConvertModelOptions) -> None:
    """Convert. The result is complete or absent. Raises UserError."""
    target = Path(options.model_to_save)
    if target.suffix.lower() in _MISTAKEN:
        raise UserError(
            f"model_to_save is {target}; files end in .safetensors or .ckpt, a folder has no ending.", "model_to_save"
        )
    metadata = parse_metadata(options.metadata)
    refuse_existing([target], options.overwrite)
    dtype = saving_type(options)
    with source_of(options) as source:
        say(f"reading {options.model_to_load}")
        model = load(source, options)
        say(f"it is {model.version}, {model.prediction_type}")
        if target.suffix in _ENDINGS:
            _save_file(model, target, dtype, metadata, options)
        else:
            _save_folder(model, target, dtype, metadata, options)
    say(f"written: {target}")


def _save_file(
    model: LoadedModel, target: Path, dtype: torch.dtype | None, metadata: dict[str, str], options: ConvertModelOptions
) -> None:
    from sd_scripts.models.saving import save_single_file

    if metadata and target.suffix == ".ckpt":
        say("note: a .ckpt file has no place for metadata")
    save_single_file(model, target, dtype, metadata, epoch=options.epoch, step=options.global_step)


def _save_folder(
    model: LoadedModel, target: Path, dtype: torch.dtype | None, metadata: dict[str, str], options: ConvertModelOptions
) -> None:
    from sd_scripts.models.saving import save_diffusers_folder

    if metadata:
        say("note: a diffusers folder has no place for metadata")
    if options.reference_model is None:
        save_diffusers_folder(model, target, dtype, safetensors=options.use_safetensors)
        return
    reference = reference_folder(options.reference_model)
    aside = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        save_diffusers_folder(model, aside, dtype, safetensors=options.use_safetensors)
        for name in ("scheduler", "tokenizer", "tokenizer_2"):
            if (reference / name).is_dir() and (aside / name).is_dir():
                shutil.rmtree(aside / name)
                shutil.copytree(reference / name, aside / name)
        if target.exists():
            shutil.rmtree(target)
        os.replace(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def reference_folder(name: str) -> Path:
    """The diffusers folder whose scheduler and tokenizer are taken. Raises UserError."""
    from sd_scripts.models.folder import hub_folder, is_hub_id

    path = Path(name)
    if not path.exists() and is_hub_id(name):
        path = hub_folder(name, ("tokenizer", "tokenizer_2"), "reference_model")
    if not (path / "scheduler").is_dir():
        raise UserError(f"{path} is no diffusers folder with a scheduler.", "reference_model")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
