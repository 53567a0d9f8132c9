"""Captions by BLIP-2: `python sd_scripts/finetune/make_captions_by_blip2.py <pictures>`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools_captions import Blip2CaptionOptions
from sd_scripts.tools.common import run

if TYPE_CHECKING:
    from PIL.Image import Image

PROG = "make_captions_by_blip2.py"
OPTIONS = Blip2CaptionOptions


def generation(options: Blip2CaptionOptions) -> dict[str, Any]:
    """Arguments for transformers' generate: beam search, or drawing by chance. Raises UserError."""
    if options.min_new_tokens > options.max_new_tokens:
        raise UserError("The shortest caption is longer than the longest.", "min_new_tokens", "Make it smaller.")
    lengths = {"min_new_tokens": options.min_new_tokens, "max_new_tokens": options.max_new_tokens}
    if options.do_sample:
        return lengths | {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p}
    return lengths | {
        "do_sample": False,
        "num_beams": options.num_beams,
        "repetition_penalty": options.repetition_penalty,
        "length_penalty": options.length_penalty,
    }


def work(options: Blip2CaptionOptions) -> None:
    """Describe the pictures that have no caption yet. Raises UserError."""
    from sd_scripts.finetune.captioning import Captions, caption_folder, load_blip2

    how = generation(options)

    def load() -> Captions:
        processor, model, device, dtype = load_blip2(options.model_id)
        import torch

        torch.manual_seed(options.seed)

        def captions(images: list[Image]) -> list[str]:
            inputs = processor(images=images, return_tensors="pt").to(device, dtype)
            with torch.no_grad():
                made = model.generate(**inputs, **how)
            return [text.strip() for text in processor.batch_decode(made, skip_special_tokens=True)]

        return captions

    caption_folder(options, options.caption_extension, load)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
