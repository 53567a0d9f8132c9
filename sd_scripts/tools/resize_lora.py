"""Make a LoRA smaller, as networks/resize_lora.py does; kept for old command lines."""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.tools_extract import ToolResizeLoraOptions
from sd_scripts.tools.common import run

PROG = "resize_lora.py"
OPTIONS = ToolResizeLoraOptions


def work(options: ToolResizeLoraOptions) -> None:
    """Resize and save. Raises UserError."""
    from sd_scripts.tools.lora.resize import resize_lora

    resize_lora(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
