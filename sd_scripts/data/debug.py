"""Looking at what the trainer would see: batches as pictures in a folder and as lines of text (`debug_dataset`)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from sd_scripts.data.batch import Batch
from sd_scripts.data.loader import BatchLoader


def picture_of(image: Tensor) -> Image.Image:
    """[3, H, W] in -1..1 as a picture."""
    values = ((image.permute(1, 2, 0).float().numpy() + 1) * 127.5 + 0.5).clip(0, 255)
    return Image.fromarray(values.astype(np.uint8))


def describe(batch: Batch) -> Iterator[str]:
    """One line for every picture of a batch."""
    for number, caption in enumerate(batch.captions):
        height, width = batch.target_sizes[number].tolist()
        original_height, original_width = batch.original_sizes[number].tolist()
        top, left = batch.crop_top_lefts[number].tolist()
        yield (
            f"{batch.paths[number]}: {original_width}x{original_height} -> {width}x{height}, "
            f"crop left {left} top {top}, {'mirrored, ' if batch.flipped[number] else ''}"
            f"weight {batch.loss_weights[number].item():g}, multiplier {batch.network_multipliers[number].item():g}, "
            f"caption {caption!r}"
        )


def inspect_batches(
    loader: BatchLoader, folder: Path, *, epochs: int = 1, most: int | None = 100
) -> Iterator[tuple[str, list[Path]]]:
    """Go through the batches of some epochs and write their pictures into a folder.

    Args:
        folder: is made; files are named e<epoch>-b<batch>-<number>.png, with -mask and -control beside them.
        most: batches to look at in each epoch; None for all.

    Yields:
        The lines of a batch as one text, and the files written for it (none for cached latents).
    """
    folder.mkdir(parents=True, exist_ok=True)
    for epoch in range(1, epochs + 1):
        for number, batch in enumerate(loader.epoch(epoch)):
            if most is not None and number >= most:
                break
            head = f"epoch {epoch}, batch {number + 1} of {len(loader)}"
            text = "\n".join([head, *(f"  {line}" for line in describe(batch))])
            yield text, _write(batch, folder / f"e{epoch:03d}-b{number:04d}")


def _write(batch: Batch, start: Path) -> list[Path]:
    written = []

    def save(picture: Image.Image, ending: str) -> None:
        path = start.with_name(f"{start.name}-{ending}.png")
        picture.save(path)
        written.append(path)

    for number in range(len(batch)):
        if batch.images is not None:
            save(picture_of(batch.images[number]), f"{number:02d}")
        if batch.masks is not None:
            grey = (batch.masks[number].numpy() * 255 + 0.5).clip(0, 255).astype(np.uint8)
            save(Image.fromarray(grey), f"{number:02d}-mask")
        if batch.conditioning_images is not None:
            save(picture_of(batch.conditioning_images[number]), f"{number:02d}-control")
    return written
