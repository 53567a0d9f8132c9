"""Merge a LyCORIS network into a model: `python sd_scripts/tools/merge_lycoris.py model network result`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools_merge import MergeLycorisOptions
from sd_scripts.tools.common import run

PROG = "merge_lycoris.py"
OPTIONS = MergeLycorisOptions
_FORMATS = {
    **dict.fromkeys(("float", "float32", "fp32"), "float32"),
    **dict.fromkeys(("float16", "fp16", "half"), "float16"),
    **dict.fromkeys(("bfloat", "bfloat16", "bf16"), "bfloat16"),
    **dict.fromkeys(("float64", "fp64", "double"), "float64"),
}


def work(options: MergeLycorisOptions) -> None:
    """Merge and write the model, complete or not at all. Raises UserError."""
    if options.dtype not in _FORMATS:
        raise UserError(
            f"dtype is {options.dtype!r}, which is no number format.", "dtype", "Give float, float16 or bfloat16."
        )
    model = Path(options.base_model)
    if not model.exists():
        raise UserError(f"There is no model at {model}.", "base_model", "Give a file or a diffusers folder.")

    import torch

    from sd_scripts.tools.lora.device import computing_device
    from sd_scripts.tools.lora.merge import note_contradiction, sources_of
    from sd_scripts.tools.lora.merge_model import Settings, merge_into_model

    saving = getattr(torch, _FORMATS[options.dtype])
    settings = Settings(
        torch.float64 if saving == torch.float64 else torch.float32,
        saving,
        computing_device(options.device),
        overwrite=options.overwrite,
        key="output_name",
    )
    sources = sources_of([options.lycoris_model], [options.weight])
    version = merge_into_model(model, sources, Path(options.output_name), settings)
    note_contradiction("--is_v2", options.is_v2, "sd2", version, model)
    note_contradiction("--is_sdxl", options.is_sdxl, "sdxl", version, model)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
