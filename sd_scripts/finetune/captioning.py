"""What captioners share: which pictures, reading them ahead, writing captions complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sd_scripts.data.image import load_picture
from sd_scripts.schema.caption_edit import with_words
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools_captions import Blip2CaptionOptions, BlipOptions, GitOptions
from sd_scripts.tools.common import Ticker, say
from sd_scripts.tools.files import beside, some_pictures, write_caption

if TYPE_CHECKING:
    import torch

_AHEAD = 2  # batches read while one is described
HINT = "Give a folder with the model, or connect to the internet once."
Captions = Callable[[list[Image.Image]], list[str]]
# the options of every captioner that works through a folder with a model
Captioning = BlipOptions | GitOptions | Blip2CaptionOptions


def caption_folder(options: Captioning, extension: str, load: Callable[[], Captions]) -> None:
    """Describe the pictures of a folder that have no caption yet, and say how many; `load` is called if there are any.

    Raises:
        UserError: if there is no picture, one cannot be read, or the model cannot be had.
    """
    todo, left_out = pictures_to_describe(
        options.train_data_dir, extension, recursive=options.recursive, replace=options.overwrite
    )
    if todo:
        describe(
            todo,
            load(),
            extension,
            batch_size=options.batch_size,
            threads=options.max_data_loader_n_workers,
            debug=options.debug,
            words=(options.prefix, options.postfix),
        )
    say_result(len(todo), left_out)


def load_blip2(name: str) -> tuple[Any, Any, torch.device, torch.dtype]:
    """Processor, model in evaluation mode, its device, and the type of its numbers, of a BLIP-2 folder or hub name.

    Raises:
        UserError: if the model cannot be had.
    """
    if not Path(name).is_dir() and name.count("/") != 1:
        raise UserError(f"There is no model at {name}.", "model_id", "Give a folder or a hub name.")
    import torch
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    try:
        processor = Blip2Processor.from_pretrained(name)
        model = Blip2ForConditionalGeneration.from_pretrained(name, dtype=dtype).to(device).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise model_error(name, error, "model_id") from error
    return processor, model, device, dtype


def pictures_to_describe(
    train_data_dir: str, extension: str, *, recursive: bool, replace: bool
) -> tuple[list[Path], int]:
    """Pictures that get a caption, and how many are left out because they have one. Raises UserError.

    Of pictures that share a caption file, as `a.jpg` and `a.png` do, the first counts.
    """
    pictures = some_pictures(train_data_dir, "train_data_dir", recursive)
    first = {beside(picture, extension): picture for picture in reversed(pictures)}
    todo = sorted(picture for caption, picture in first.items() if replace or not caption.exists())
    return todo, len(first) - len(todo)


def read_ahead(pictures: Sequence[Path], batch_size: int, threads: int | None) -> Iterator[tuple[list[Path], list]]:
    """Batches of pictures and their upright RGB images; threads read the next ones meanwhile. Raises DataError."""

    def read(path: Path) -> Image.Image:
        return Image.fromarray(load_picture(path).pixels)

    batches = [list(pictures[start : start + batch_size]) for start in range(0, len(pictures), batch_size)]
    with ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1)) as pool:
        waiting: list[tuple[list[Path], list[Future[Image.Image]]]] = []
        for batch in batches:
            waiting.append((batch, [pool.submit(read, path) for path in batch]))
            if len(waiting) > _AHEAD:
                paths, futures = waiting.pop(0)
                yield paths, [future.result() for future in futures]
        for paths, futures in waiting:
            yield paths, [future.result() for future in futures]


def describe(
    pictures: Sequence[Path],
    captions_of: Captions,
    extension: str,
    *,
    batch_size: int,
    threads: int | None,
    debug: bool,
    words: tuple[str, str] = ("", ""),
) -> None:
    """Write the caption of every picture as soon as there is one, with these words in front of it and behind it."""
    ticker, done = Ticker("captions", len(pictures)), 0
    for paths, images in read_ahead(pictures, batch_size, threads):
        for path, caption in zip(paths, captions_of(images), strict=True):
            caption = with_words(words[0], caption, words[1])
            write_caption(beside(path, extension), f"{caption}\n")
            if debug:
                say(f"{path} {caption}")
        done += len(paths)
        ticker.at(done)


def say_result(written: int, left_out: int) -> None:
    """Print how many captions there are now."""
    say(f"{written} captions written" + (f", {left_out} were there already" if left_out else ""))


def model_error(name: str, error: Exception, key: str) -> UserError:
    """One sentence for what transformers or the hub says when a model cannot be loaded."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(f"The model {name} cannot be loaded: {lines[0].rstrip('.')}.", key, HINT)
