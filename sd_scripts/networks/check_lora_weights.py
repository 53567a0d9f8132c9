"""How large the weights of a network are: `python sd_scripts/networks/check_lora_weights.py lora.safetensors`."""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.tools_inspect import CheckLoraOptions
from sd_scripts.tools.common import run

PROG = "check_lora_weights.py"
OPTIONS = CheckLoraOptions


def work(options: CheckLoraOptions) -> None:
    """Print the statistics, and write the table where one is asked for. Raises UserError."""
    from sd_scripts.tools.lora.check import check

    check(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
