"""Captions by BLIP: `python sd_scripts/finetune/make_captions.py <pictures> --caption_extension .txt`."""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.tools_captions import BlipOptions
from sd_scripts.tools.common import run

PROG = "make_captions.py"
OPTIONS = BlipOptions


def work(options: BlipOptions) -> None:
    """Describe the pictures that have no caption yet. Raises UserError."""
    from sd_scripts.finetune.captioning import Captions, caption_folder

    def load() -> Captions:
        import torch

        from sd_scripts.finetune.blip import Generation, load_blip

        blip = load_blip(options.caption_weights, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        torch.manual_seed(options.seed)
        how = Generation(options.beam_search, options.num_beams, options.top_p, options.max_length, options.min_length)
        return lambda images: blip.captions(images, how)

    caption_folder(options, options.caption_extention or options.caption_extension, load)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
