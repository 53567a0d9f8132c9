"""Take a LyCORIS file out of a tuned model, as lycoris_locon_extract.py does; kept for old command lines."""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.tools_extract import ExtractLoconOptions
from sd_scripts.tools.common import run

PROG = "extract_locon.py"
OPTIONS = ExtractLoconOptions


def work(options: ExtractLoconOptions) -> None:
    """Extract and save. Raises UserError."""
    from sd_scripts.tools.lora.extract_locon import extract_locon

    extract_locon(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
