"""Latents of pictures in .npz files under the name and with the keys that both trainers look for."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from sd_scripts.data.cache import STRIDE, Wanted, parse_cache, source_of
from sd_scripts.data.image import Picture, fit_bucket, load_picture, to_tensor
from sd_scripts.data.npz import DAMAGED, read_arrays, write_arrays
from sd_scripts.schema.buckets import Placement, Size
from sd_scripts.schema.errors import UserError
from sd_scripts.tools.report import report

_AHEAD = 2  # batches read while one is encoded


@dataclass(frozen=True)
class Work:
    """One picture to encode: its file, where it goes, its training size (multiples of 8) and the file to write."""

    picture: Path
    place: Placement
    size: Size
    npz: Path

    def wanted(self, flip: bool) -> Wanted:
        """What the file must hold."""
        return Wanted((self.size[1] // STRIDE, self.size[0] // STRIDE), flip, False)

    def is_there(self, flip: bool) -> bool:
        """Whether the file holds latents of the right size already."""
        try:
            return parse_cache(read_arrays(self.npz), self.wanted(flip)) is not None
        except DAMAGED:
            return False

    def pixels(self) -> Picture:
        """The picture, cut to its training size."""
        return fit_bucket(load_picture(self.picture), self.size, self.place.resized)


def encode_all(
    todo: Sequence[Work],
    vae: AutoencoderKL,
    *,
    batch_size: int,
    flip: bool,
    threads: int,
    progress: Callable[[int], None],
) -> None:
    """Encode every picture and write its file; threads read ahead.

    Raises:
        UserError: a picture cannot be read, the VAE gives NaN, or a file cannot be written.
    """
    done = 0
    for batch, pictures in _read_ahead(_batches(todo, batch_size), threads):
        pixels = torch.stack([to_tensor(picture.pixels) for picture in pictures])
        latents = encode(vae, pixels, batch)
        mirrored = encode(vae, pixels.flip(-1), batch) if flip else None
        for number, work in enumerate(batch):
            _write(work, latents[number], None if mirrored is None else mirrored[number])
        done += len(batch)
        progress(done)


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor, batch: Sequence[Work]) -> Tensor:
    """Unscaled latents [B, 4, H/8, W/8] of pixels [B, 3, H, W] in -1..1, float32 on the CPU.

    A VAE samples: every picture has draws of its own name, so the same picture gives the same latents in any batch.
    """
    draws = [torch.Generator().manual_seed(zlib.crc32(os.fsencode(work.picture.name))) for work in batch]
    latents: Tensor = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.sample(draws).float().cpu()
    for work, own in zip(batch, latents):
        if not torch.isfinite(own).all():
            raise UserError(
                f"The VAE gave NaN or infinite values for {work.picture}.",
                "mixed_precision",
                "Use --mixed_precision no, or another VAE.",
            )
    return latents


def _batches(todo: Sequence[Work], size: int) -> list[list[Work]]:
    by_size: dict[Size, list[Work]] = {}
    for work in todo:
        by_size.setdefault(work.size, []).append(work)
    return [group[start : start + size] for group in by_size.values() for start in range(0, len(group), size)]


def _read_ahead(batches: Sequence[list[Work]], threads: int) -> Iterator[tuple[list[Work], list[Picture]]]:
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[tuple[list[Work], list[Future[Picture]]]] = []
        for batch in batches:
            waiting.append((batch, [pool.submit(work.pixels) for work in batch]))
            if len(waiting) > _AHEAD:
                first, futures = waiting.pop(0)
                yield first, [future.result() for future in futures]
        for first, futures in waiting:
            yield first, [future.result() for future in futures]


def _write(work: Work, latents: Tensor, mirrored: Tensor | None) -> None:
    # No VAE is noted: as with the known scripts, any training takes these files, whatever its number format.
    source = source_of(str(work.picture), None, "")
    arrays = {
        "latents": latents.numpy(),
        "original_size": np.array(work.place.image),
        "crop_ltrb": np.array(work.place.crop_ltrb, dtype=np.float64),
        "source": np.array(json.dumps(source, sort_keys=True)),
    }
    if mirrored is not None:
        arrays["latents_flipped"] = mirrored.numpy()
    try:
        with report.writing(work.npz):
            write_arrays(work.npz, arrays)
    except OSError as error:
        raise UserError(f"{work.npz} cannot be written: {error.strerror or error}.") from error
