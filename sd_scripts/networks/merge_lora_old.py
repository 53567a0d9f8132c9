"""Merge networks as merge_lora.py does, with the few settings of its first form: `merge_lora_old.py --help`.

With --sd_model they are merged into that model, else into one LoRA file.
"""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.tools_merge import MergeLoraOldOptions, MergeLoraOptions
from sd_scripts.tools.common import run

PROG = "merge_lora_old.py"
OPTIONS = MergeLoraOldOptions


def work(options: MergeLoraOldOptions) -> None:
    """Merge and write the result, complete or not at all. Raises UserError."""
    from sd_scripts.tools.lora.merge_work import merge

    merge(MergeLoraOptions(**vars(options)))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
