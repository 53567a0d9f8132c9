"""One batch for the trainer, made from the pictures that share a bucket."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sd_scripts.data.batch_type import Batch
from sd_scripts.data.cache import CachedLatents, Wanted, read_latents
from sd_scripts.data.dataset import Dataset, DatasetGroup, ImageRecord
from sd_scripts.data.foreign import as_batch
from sd_scripts.data.image import (
    Picture,
    crop_at_face,
    face_in_name,
    fit_bucket,
    load_mask,
    load_picture,
    random_corner,
    shift_colours,
    to_tensor,
)
from sd_scripts.data.text_cache import TextCache
from sd_scripts.schema.buckets import Size, same_shape
from sd_scripts.schema.captions import Moment, compose, replace
from sd_scripts.schema.errors import DataError

__all__ = ["Batch", "make_batch"]


@dataclass
class _Sample:
    """One picture of a batch before stacking."""

    pixels: Tensor | None
    latents: Tensor | None
    mask: np.ndarray | None
    control: Tensor | None
    original_size: Size
    crop: tuple[float, float]
    target: Size
    flipped: bool


def make_batch(group: DatasetGroup, index: int, epoch: int, step: int = 0, max_steps: int = 0) -> Batch:
    """Batch `index` of an epoch (from 1).

    All draws follow from (seed, epoch, index), so they depend neither on worker processes nor on what came before; and
    mirroring and captions are the same with cached latents as without.

    Args:
        step: optimiser steps done before this batch, for token warm-up.
        max_steps: steps in all, for a token warm-up given as a share.

    Raises:
        DataError: naming a picture or cache file that cannot be read.
    """
    start = f"{group.seed}/{epoch}/{index}"
    rng, words = random.Random(start), random.Random(f"{start}/words")
    if group.foreign is not None:
        batch = as_batch(group.foreign[index], index, group.blueprint.source)
        batch.captions = [replace(caption, group.replacements, words) for caption in batch.captions]
        return batch
    dataset, number = group.locate(index)
    moment = Moment(epoch, step, max_steps)
    records = [dataset.records[i] for i in dataset.order.pictures(epoch, number)]
    samples, captions = [], []
    for record in records:
        samples.append(_sample(group, dataset, record, rng))
        rules = dataset.subset_of(record).captions
        captions.append(compose(record.caption, rules, words, moment, group.replacements))
    weights = [dataset.spec.prior_loss_weight if dataset.subset_of(r).is_reg else 1.0 for r in records]
    return Batch(
        images=_stack([sample.pixels for sample in samples]),
        latents=_stack([sample.latents for sample in samples]),
        captions=captions,
        loss_weights=torch.tensor(weights, dtype=torch.float32),
        network_multipliers=torch.full((len(records),), dataset.spec.network_multiplier, dtype=torch.float32),
        masks=_masks(samples) if dataset.has_masks(group.blueprint.masks) else None,
        conditioning_images=_stack([sample.control for sample in samples]),
        original_sizes=_pairs([sample.original_size[::-1] for sample in samples]),
        crop_top_lefts=_pairs([(int(sample.crop[1]), int(sample.crop[0])) for sample in samples]),
        target_sizes=_pairs([sample.target[::-1] for sample in samples]),
        paths=[record.path for record in records],
        flipped=[sample.flipped for sample in samples],
        index=index,
        attributes=[dict(dataset.subset_of(record).custom_attributes) for record in records],
        text_outputs=_text_outputs(group.text_cache, records, captions),
    )


def _text_outputs(cache: TextCache | None, records: list[ImageRecord], captions: list[str]) -> dict[str, Tensor] | None:
    if cache is None:
        return None
    outputs = [cache.outputs(record.path, caption) for record, caption in zip(records, captions)]
    return {name: torch.stack([each[name] for each in outputs]) for name in outputs[0]}


def _stack(tensors: list[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None


def _pairs(pairs: list[tuple[int, int]]) -> Tensor:
    return torch.tensor(pairs, dtype=torch.int64)


def _masks(samples: list[_Sample]) -> Tensor:
    """Masks of all pictures; one without a mask is learned everywhere."""
    masks = []
    for sample in samples:
        mask = sample.mask if sample.mask is not None else np.ones(sample.target[::-1], np.float32)
        masks.append(torch.from_numpy(np.ascontiguousarray(mask)))
    return torch.stack(masks)


def _sample(group: DatasetGroup, dataset: Dataset, record: ImageRecord, rng: random.Random) -> _Sample:
    subset = dataset.subset_of(record)
    flipped = subset.flip_aug and rng.random() < 0.5
    cached = record.latents
    if cached is None and record.cache_path is not None:
        cached = read_latents(record.cache_path, Wanted.of(record, subset))
    if cached is not None:
        return _from_cache(group, dataset, record, cached, flipped)
    place = record.placement
    picture = load_picture(record.path, with_mask=subset.alpha_mask)
    control = _conditioning(group, record, picture)
    before = rng.getstate()
    picture = _cut(dataset, record, picture, rng)
    if control is not None:
        rng.setstate(before)  # the same place is cut out of the control picture
        control = _cut(dataset, record, control, rng)
    if subset.color_aug:
        picture = Picture(shift_colours(picture.pixels, rng), picture.mask)
    if flipped:
        picture = picture.flip()
        control = control.flip() if control is not None else None
    left, top, right, _ = place.crop_ltrb
    return _Sample(
        to_tensor(picture.pixels),
        None,
        picture.mask,
        None if control is None else to_tensor(control.pixels),
        place.image,
        (place.bucket[0] - right if flipped else left, top),
        place.bucket,
        flipped,
    )


def _conditioning(group: DatasetGroup, record: ImageRecord, picture: Picture) -> Picture | None:
    """Control picture of the picture's size; a loss mask is put into the picture instead."""
    if record.conditioning is None:
        return None
    if group.blueprint.masks:
        picture.mask = _same_shape(record, Picture(load_mask(record.conditioning)), picture.size).pixels
        return None
    return _same_shape(record, load_picture(record.conditioning), picture.size)


def _same_shape(record: ImageRecord, other: Picture, size: Size) -> Picture:
    """The other picture in this size. It was of the same shape when the pictures were found."""
    if not same_shape(size, other.size):
        raise DataError(
            f"{record.conditioning} is {other.size[0]}x{other.size[1]}, which does not go with {record.path} "
            f"of {size[0]}x{size[1]} pixels: they must have the same shape.",
            key="conditioning_data_dir",
        )
    return other.resize(size, "area")


def _cut(dataset: Dataset, record: ImageRecord, picture: Picture, rng: random.Random) -> Picture:
    """A picture cut to its bucket: around a face, at random, or in the middle."""
    subset, place = dataset.subset_of(record), record.placement
    buckets = dataset.spec.bucketing is None or dataset.spec.bucketing.enabled
    if not buckets and subset.face_crop_aug_range is not None:
        face = face_in_name(record.path)
        if face is not None:
            return crop_at_face(
                picture,
                face,
                place.bucket,
                subset.face_crop_aug_range,
                rng,
                subset.random_crop,
                subset.resize_interpolation,
            )
    fits = picture.size[0] >= place.bucket[0] and picture.size[1] >= place.bucket[1]
    if not buckets and subset.random_crop and fits:
        left, top = random_corner(picture.size, place.bucket, rng)
        return picture.crop(left, top, place.bucket)
    return fit_bucket(
        picture, place.bucket, place.resized, subset.resize_interpolation, rng if subset.random_crop else None
    )


def _from_cache(
    group: DatasetGroup, dataset: Dataset, record: ImageRecord, cached: CachedLatents, flipped: bool
) -> _Sample:
    place = record.placement
    mask = None if cached.mask is None else cached.mask.astype(np.float32) / 255
    control = None
    if record.conditioning is not None:
        blank = Picture(np.zeros((place.image[1], place.image[0], 3), np.uint8))
        other = _conditioning(group, record, blank)
        cut = fit_bucket(other or blank, place.bucket, place.resized, dataset.subset_of(record).resize_interpolation)
        mask = cut.mask if other is None else mask
        control = cut if other is not None else None
    if flipped:
        mask = None if mask is None else mask[:, ::-1]
        control = None if control is None else control.flip()
    left, top, right, _ = cached.crop_ltrb
    return _Sample(
        None,
        cached.flipped if flipped else cached.latents,
        mask,
        None if control is None else to_tensor(control.pixels),
        cached.original_size,
        (place.bucket[0] - right if flipped else left, top),
        place.bucket,
        flipped,
    )
