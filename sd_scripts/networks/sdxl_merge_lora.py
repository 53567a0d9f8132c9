"""Merge networks for SDXL: `python sd_scripts/networks/sdxl_merge_lora.py --models a.pt b.pt --save_to c.safetensors`.

With --sd_model they are merged into that model, else into one LoRA file.
"""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.tools_merge import MergeLoraOptions, SdxlMergeLoraOptions
from sd_scripts.tools.common import run

PROG = "sdxl_merge_lora.py"
OPTIONS = SdxlMergeLoraOptions


def work(options: SdxlMergeLoraOptions) -> None:
    """Merge and write the result, complete or not at all. Raises UserError."""
    from sd_scripts.tools.lora.merge_work import merge

    merge(MergeLoraOptions(**vars(options)), sdxl=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
