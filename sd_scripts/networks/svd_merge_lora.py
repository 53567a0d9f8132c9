"""Merge networks into one LoRA of a given rank: `svd_merge_lora.py --models a.pt b.pt --save_to c.pt --new_rank 16`."""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.tools_merge import SvdMergeLoraOptions
from sd_scripts.tools.common import run

PROG = "svd_merge_lora.py"
OPTIONS = SvdMergeLoraOptions


def work(options: SvdMergeLoraOptions) -> None:
    """Merge and write the result, complete or not at all. Raises UserError."""
    from sd_scripts.tools.lora.device import computing_device
    from sd_scripts.tools.lora.merge import number_format, sources_of, target_file
    from sd_scripts.tools.lora.merge_svd import Settings, merge_by_svd

    target = target_file(options.save_to, options.overwrite)
    precision = number_format(options.precision)
    assert precision is not None
    settings = Settings(
        rank=options.new_rank,
        conv_rank=options.new_conv_rank or options.new_rank,
        precision=precision,
        saving=number_format(options.save_precision) or precision,
        device=computing_device(options.device),
        exact=options.exact,
        legacy=options.legacy,
        bare=options.no_metadata,
        conv_noted=options.new_conv_rank is not None,
    )
    merge_by_svd(sources_of(options.models, options.ratios, options.lbws), target, settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
