"""The work of merge_lora.py and its kin: what the options mean, and which way of merging they ask for."""

from __future__ import annotations

from pathlib import Path

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools_merge import MergeLoraOptions
from sd_scripts.tools.common import say
from sd_scripts.tools.lora.merge import note_contradiction, number_format, sources_of, target_file


def merge(options: MergeLoraOptions, *, sdxl: bool = False) -> None:
    """Merge networks into a model or into one LoRA file.

    Args:
        options: of the script.
        sdxl: it is the script for Stable Diffusion XL.

    Raises:
        UserError: anything that the person can put right.
    """
    into_model = bool(options.sd_model)
    target = _model_target(options) if into_model else target_file(options.save_to, options.overwrite)
    sources = sources_of(options.models, options.ratios, options.lbws)

    import torch

    precision = number_format(options.precision)
    saving = number_format(options.save_precision) or precision
    assert precision is not None and saving is not None
    if into_model:
        from sd_scripts.tools.lora import merge_model

        _say_unused(options)
        model = Path(str(options.sd_model))
        settings = merge_model.Settings(
            precision, saving, torch.device("cpu"), bare=options.no_metadata, overwrite=options.overwrite
        )
        version = merge_model.merge_into_model(model, sources, target, settings)
        _say_contradictions(options, sdxl, version, model)
        return
    from sd_scripts.tools.lora import merge_network

    version = next((source.file.version for source in sources if source.file.version), "")
    _say_contradictions(options, sdxl, version, sources[0].file.path)
    merge_network.merge_networks(
        sources,
        target,
        merge_network.Settings(
            precision,
            saving,
            concat=options.concat,
            shuffle=options.seed if options.shuffle else None,
            legacy=options.legacy,
            bare=options.no_metadata,
        ),
    )


def _model_target(options: MergeLoraOptions) -> Path:
    if not options.save_to:
        raise UserError("save_to is missing.", "save_to", "Give --save_to and the file or folder to write.")
    if not Path(str(options.sd_model)).exists():
        raise UserError(f"There is no model at {options.sd_model}.", "sd_model", "Give a file or a diffusers folder.")
    return Path(options.save_to)


def _say_unused(options: MergeLoraOptions) -> None:
    without = [name for name in ("concat", "shuffle", "legacy") if getattr(options, name)]
    if without:
        say(f"note: --{' and --'.join(without)} change nothing when networks are merged into a model")


def _say_contradictions(options: MergeLoraOptions, sdxl: bool, version: str, path: Path) -> None:
    note_contradiction("--v2", options.v2, "sd2", version, path)
    note_contradiction("sdxl_merge_lora.py", sdxl, "sdxl", version, path)
