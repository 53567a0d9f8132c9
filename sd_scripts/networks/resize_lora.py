"""Make a LoRA smaller: `python sd_scripts/networks/resize_lora.py --model a.safetensors --save_to b.safetensors`."""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.tools_extract import ResizeLoraOptions
from sd_scripts.tools.common import run

PROG = "resize_lora.py"
OPTIONS = ResizeLoraOptions


def work(options: ResizeLoraOptions) -> None:
    """Resize and save. Raises UserError."""
    from sd_scripts.tools.lora.resize import resize_lora

    resize_lora(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
