"""Captions by GIT: `python sd_scripts/finetune/make_captions_by_git.py <pictures> --caption_extension .txt`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools_captions import GitOptions
from sd_scripts.tools.common import run

if TYPE_CHECKING:
    from PIL.Image import Image

PROG = "make_captions_by_git.py"
OPTIONS = GitOptions

_QUOTED = r"""(?:"[^"]*"?|'[^']*'?|[\w-]+)"""
_WRITING = r"(?:words?|letters?|names?|numbers?|text|writing)"
_PLACE = r"(?:\s+(?:is\s+)?(?:written\s+)?on\s+(?:(?:the|her|his|their|its|a)\s+)?\w+)?"
_INVENTED = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\s*,?\s*\b(?:has|with|and|that has)\s+(?:the|a)\s+{_WRITING}\s+{_QUOTED}{_PLACE}",
        rf"\s*,?\s*\b(?:with\s+a\s+sign\s+)?(?:that|which|and)\s+(?:says?|reads?)\s+(?:the\s+{_WRITING}\s+)?{_QUOTED}{_PLACE}",
        rf"\s*,?\s*\bwith\s+{_QUOTED}\s+written\s+on\s+(?:(?:the|it|her|his|their)\b\s*)?\w*",
    )
)


def without_writing(caption: str) -> str:
    """A caption without what it says about words in the picture."""
    for pattern in _INVENTED:
        caption = pattern.sub("", caption)
    return re.sub(r"\s+", " ", caption).strip(" ,")


def load_git(name: str) -> Callable[[list[Image], int], list[str]]:
    """A function from images and the longest length to captions. Raises UserError where the model cannot be had."""
    if not Path(name).is_dir() and name.count("/") != 1:
        raise UserError(f"There is no model at {name}.", "model_id", "Give a folder or a hub name.")
    import torch
    from transformers import AutoModelForCausalLM, AutoProcessor

    from sd_scripts.finetune.captioning import model_error

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        processor = AutoProcessor.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name).to(device).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise model_error(name, error, "model_id") from error

    def captions(images: list[Image], max_length: int) -> list[str]:
        pixels = processor(images=images, return_tensors="pt").pixel_values.to(device)
        with torch.no_grad():
            made = model.generate(pixel_values=pixels, max_length=max_length)
        return [text.strip() for text in processor.batch_decode(made, skip_special_tokens=True)]

    return captions


def work(options: GitOptions) -> None:
    """Describe the pictures that have no caption yet. Raises UserError."""
    from sd_scripts.finetune.captioning import Captions, caption_folder

    def load() -> Captions:
        captions = load_git(options.model_id)

        def made(images: list[Image]) -> list[str]:
            found = captions(images, options.max_length)
            return [without_writing(text) for text in found] if options.remove_words else found

        return made

    caption_folder(options, options.caption_extension, load)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
