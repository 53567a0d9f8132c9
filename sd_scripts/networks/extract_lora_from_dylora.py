"""Split a DyLoRA file into files of all its ranks: `python sd_scripts/networks/extract_lora_from_dylora.py ...`."""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.tools_extract import ExtractDyloraOptions
from sd_scripts.tools.common import run

PROG = "extract_lora_from_dylora.py"
OPTIONS = ExtractDyloraOptions


def work(options: ExtractDyloraOptions) -> None:
    """Split and save. Raises UserError."""
    from sd_scripts.tools.lora.extract_dylora import extract_dylora

    extract_dylora(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
