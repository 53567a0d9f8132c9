"""Captions by BLIP-2: `python sd_scripts/finetune/make_captions_by_blip2.py <pictures>`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
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


def load_blip2(name: str) -> Callable[[list[Image], dict[str, Any]], list[str]]:
    """A function from images and generate's arguments to captions. Raises UserError where the model cannot be had."""
    if not Path(name).is_dir() and name.count("/") != 1:
        raise UserError(f"There is no model at {name}.", "model_id", "Give a folder or a hub name.")
    import torch
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    from sd_scripts.finetune.captioning import model_error

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    try:
        processor = Blip2Processor.from_pretrained(name)
        model = Blip2ForConditionalGeneration.from_pretrained(name, dtype=dtype).to(device).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise model_error(name, error, "model_id") from error

    def captions(images: list[Image], how: dict[str, Any]) -> list[str]:
        inputs = processor(images=images, return_tensors="pt").to(device, dtype)
        with torch.no_grad():
            made = model.generate(**inputs, **how)
        return [text.strip() for text in processor.batch_decode(made, skip_special_tokens=True)]

    return captions


def work(options: Blip2CaptionOptions) -> None:
    """Describe the pictures that have no caption yet. Raises UserError."""
    from sd_scripts.finetune.captioning import describe, pictures_to_describe, say_result

    how = generation(options)
    todo, left_out = pictures_to_describe(
        options.train_data_dir, options.caption_extension, recursive=options.recursive, replace=options.overwrite
    )
    if todo:
        captions = load_blip2(options.model_id)

        import torch

        torch.manual_seed(options.seed)
        describe(
            todo,
            lambda images: captions(images, how),
            options.caption_extension,
            batch_size=options.batch_size,
            threads=options.max_data_loader_n_workers,
            debug=options.debug,
            words=(options.prefix, options.postfix),
        )
    say_result(len(todo), left_out)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
