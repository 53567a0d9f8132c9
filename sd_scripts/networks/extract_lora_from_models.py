"""Take a LoRA out of a tuned model: `python sd_scripts/networks/extract_lora_from_models.py --model_org ...`."""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.tools_extract import ExtractLoraOptions
from sd_scripts.tools.common import run

PROG = "extract_lora_from_models.py"
OPTIONS = ExtractLoraOptions


def work(options: ExtractLoraOptions) -> None:
    """Extract and save. Raises UserError."""
    from sd_scripts.tools.lora.extract import extract_lora

    extract_lora(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
