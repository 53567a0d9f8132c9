"""Merge networks: `python sd_scripts/networks/merge_lora.py --models a.safetensors b.safetensors --save_to c.pt`.

With --sd_model they are merged into that model, else into one LoRA file.
"""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.tools_merge import MergeLoraOptions
from sd_scripts.tools.common import run

PROG = "merge_lora.py"
OPTIONS = MergeLoraOptions


def work(options: MergeLoraOptions) -> None:
    """Merge and write the result, complete or not at all. Raises UserError."""
    from sd_scripts.tools.lora.merge_work import merge

    merge(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
