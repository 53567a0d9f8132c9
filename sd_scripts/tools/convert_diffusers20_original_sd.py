"""Convert models: `python sd_scripts/tools/convert_diffusers20_original_sd.py <model to load> <model to save>`."""

from __future__ import annotations

import ast
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.headers import VERSION_NAMES, identify
from sd_scripts.schema.tools_models import ConvertModelOptions
from sd_scripts.tools.common import Ticker, run, say
from sd_scripts.tools.files import refuse_existing
from sd_scripts.tools.models.writing import size_text, written, written_folder

if TYPE_CHECKING:
    import torch

    from sd_scripts.models.converting import LazyModel

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
    """A temporary folder with a model's configurations and, under their usual names, one variant's weights.

    Raises:
        UserError: there are no weights of that variant.
    """
    with TemporaryDirectory(prefix="variant-") as temporary:
        view = Path(temporary) / folder.name
        found = 0
        for path in sorted(folder.rglob("*")):
            target = view / path.relative_to(folder)
            if not path.is_file():
                continue
            if path.suffix in (".json", ".txt"):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            elif f".{variant}." in path.name and path.suffix in (".safetensors", ".bin"):
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(path, target.with_name(path.name.replace(f".{variant}.", ".")))
                found += 1
        if not found:
            raise UserError(f"{folder} has no weights of the variant {variant!r}.", "variant")
        yield view


def _link(path: Path, target: Path) -> None:
    try:
        os.symlink(path.resolve(), target)
    except OSError:
        shutil.copyfile(path, target)  # Windows allows links to few


def load(path: Path, options: ConvertModelOptions) -> LazyModel:
    """The model, of which nothing is read yet. Raises UserError for another kind than --v1 or --v2 say."""
    from sd_scripts.models.converting import open_lazily

    if options.v1 and options.v2:
        raise UserError("v1 and v2 are both on.", "v1", "Give one, or none: the file says what it is.")
    facts = identify(str(path))
    if facts.problem:
        raise UserError(f"{path} cannot be read: {facts.problem}.", "model_to_load")
    model = open_lazily(path, "model_to_load")
    asked = "sd1" if options.v1 else "sd2" if options.v2 else ""
    if asked and model.version != asked:
        raise UserError(
            f"{path} is {VERSION_NAMES[model.version]}, not {VERSION_NAMES[asked]}.", "v1" if options.v1 else "v2"
        )
    return model


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
        say(f"it is {VERSION_NAMES[model.version]}, {model.prediction}")
        save = _save_file if target.suffix in _ENDINGS else _save_folder
        with closing(model.files):
            count = save(model, target, dtype, metadata, options)
    say(f"{count} weights written to {target} ({size_text(target)})")


def _save_file(
    model: LazyModel, target: Path, dtype: torch.dtype | None, metadata: dict[str, str], options: ConvertModelOptions
) -> int:
    from sd_scripts.models.converting import write_file

    if metadata and target.suffix == ".ckpt":
        say("note: a .ckpt file has no place for metadata")
    counts, progress = (options.epoch, options.global_step), Ticker("weights").at
    with written(target):
        return write_file(model, target, dtype, metadata, counts=counts, progress=progress)


def _save_folder(
    model: LazyModel, target: Path, dtype: torch.dtype | None, metadata: dict[str, str], options: ConvertModelOptions
) -> int:
    from sd_scripts.models.converting import write_folder

    if metadata:
        say("note: a diffusers folder has no place for metadata")
    reference = None if options.reference_model is None else reference_folder(options.reference_model)
    progress = Ticker("weights").at

    with written_folder(target) as tell:

        def finish(aside: Path) -> None:
            if reference is not None:
                _take_over(reference, aside)
            tell(aside)

        return write_folder(model, target, dtype, safetensors=options.use_safetensors, finish=finish, progress=progress)


def _take_over(reference: Path, folder: Path) -> None:
    """Give a folder the scheduler and tokenizers of another."""
    for name in ("scheduler", "tokenizer", "tokenizer_2"):
        if (reference / name).is_dir() and (folder / name).is_dir():
            shutil.rmtree(folder / name)
            shutil.copytree(reference / name, folder / name)


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
