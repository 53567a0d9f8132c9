"""Latents kept so that every picture is encoded once: in memory, or in .npz files beside the pictures.

Files carry kohya's names and keys, so caches made by sd-scripts are read and ours can be read there. One more key,
"source", remembers which picture, VAE and scaling they were made from; a file without it counts as stale when its
picture is newer than itself.
"""

import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sd_scripts.data.config import SubsetSpec
from sd_scripts.data.image import fit_bucket, load_picture, to_tensor
from sd_scripts.data.npz import DAMAGED, Arrays, BackgroundWriter, read_arrays, write_arrays
from sd_scripts.schema.buckets import Size
from sd_scripts.schema.errors import DataError, UserError

if TYPE_CHECKING:
    from sd_scripts.data.dataset import Dataset, DatasetGroup, ImageRecord

STRIDE = 8
"""Pixels of one latent cell."""

AHEAD = 2
"""Batches whose pictures are read while the encoder works on one; more would only take memory."""


@dataclass
class CachedLatents:
    """Latents of one picture. mask: uint8 [height, width], 255 is learned fully; sizes are (width, height)."""

    latents: Tensor
    flipped: Tensor | None
    mask: np.ndarray | None
    original_size: Size
    crop_ltrb: tuple[float, float, float, float]


@dataclass(frozen=True)
class Wanted:
    """What a cache must hold for one picture: latents of [h, w] cells, and maybe mirrored ones and a mask."""

    cells: tuple[int, int]
    flipped: bool
    mask: bool

    @classmethod
    def of(cls, record: "ImageRecord", subset: SubsetSpec) -> "Wanted":
        """For a picture in its bucket."""
        width, height = record.placement.bucket
        return cls((height // STRIDE, width // STRIDE), subset.flip_aug, subset.alpha_mask)

    @property
    def suffix(self) -> str:
        """Ending of array names where one file holds latents of several sizes."""
        return f"_{self.cells[0]}x{self.cells[1]}"


def cache_paths(picture: str, size: Size, family: str, whole_name: bool = False) -> tuple[str, str]:
    """Cache files of a picture: the older name, read where it exists, and the name under which we write.

    whole_name keeps the picture's ending in the name, for a second picture of the same stem.
    """
    stem = picture if whole_name else os.path.splitext(picture)[0]
    return f"{stem}.npz", f"{stem}_{size[0]:04d}x{size[1]:04d}_{family}.npz"


def parse_cache(arrays: Arrays, wanted: Wanted) -> CachedLatents | None:
    """Latents in the arrays of a file, None where a needed one is missing, of another size or not finite."""
    for suffix in (wanted.suffix, ""):
        latents = arrays.get(f"latents{suffix}")
        if latents is None or latents.ndim != 3 or latents.shape[1:] != wanted.cells:
            continue
        flipped = arrays.get(f"latents_flipped{suffix}")
        mask = arrays.get(f"alpha_mask{suffix}")
        original, crop = arrays.get(f"original_size{suffix}"), arrays.get(f"crop_ltrb{suffix}")
        if original is None or crop is None or not np.isfinite(latents).all():
            continue
        if wanted.flipped and (flipped is None or flipped.shape != latents.shape or not np.isfinite(flipped).all()):
            continue
        if wanted.mask and (mask is None or mask.shape != (wanted.cells[0] * STRIDE, wanted.cells[1] * STRIDE)):
            continue
        return CachedLatents(
            torch.from_numpy(latents.astype(np.float32)),
            torch.from_numpy(flipped.astype(np.float32)) if wanted.flipped and flipped is not None else None,
            _mask_bytes(mask) if wanted.mask and mask is not None else None,
            (int(original[0]), int(original[1])),
            (float(crop[0]), float(crop[1]), float(crop[2]), float(crop[3])),
        )
    return None


def _mask_bytes(mask: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(mask * 255 + 0.5, 0, 255).astype(np.uint8))


def source_of(picture: str, interpolation: str | None, encoder_id: str) -> dict[str, Any]:
    """What latents depend on besides the bucket."""
    status = os.stat(picture)
    return {
        "file": os.path.basename(picture),
        "bytes": status.st_size,
        "changed_ns": status.st_mtime_ns,
        "interpolation": interpolation or "",
        "encoder": encoder_id,
    }


def is_fresh(path: str, arrays: Arrays, source: dict[str, Any]) -> bool:
    """Whether a file was made from this picture as it is now."""
    recorded = arrays.get("source")
    if recorded is None:
        return os.stat(path).st_mtime_ns >= source["changed_ns"]
    try:
        was = json.loads(str(recorded))
    except ValueError:
        return False
    if not isinstance(was, dict):
        return False
    same_encoder = not was.get("encoder") or not source["encoder"] or was["encoder"] == source["encoder"]
    return same_encoder and all(was.get(k) == source[k] for k in ("file", "bytes", "changed_ns", "interpolation"))


def read_latents(path: str, wanted: Wanted) -> CachedLatents:
    """Latents for training from a file that was checked before. Raises DataError naming a file that is damaged now."""
    try:
        found = parse_cache(read_arrays(path), wanted)
    except DAMAGED as error:
        raise DataError(
            f"the cache file {path} is damaged: {error}", "cache_latents", "Delete it and start again."
        ) from error
    if found is None:
        raise DataError(
            f"the cache file {path} does not hold what this run needs", "cache_latents", "Delete it and start again."
        )
    return found


@dataclass
class _Task:
    """One picture to encode for one data set."""

    dataset: "Dataset"
    record: "ImageRecord"
    wanted: Wanted
    path: str
    source: dict[str, Any]

    @property
    def subset(self) -> SubsetSpec:
        return self.dataset.subset_of(self.record)

    def decode(self) -> "_Decoded":
        """The picture cut to its bucket, ready for the encoder."""
        picture = load_picture(self.record.path, with_mask=self.wanted.mask)
        place = self.record.placement
        picture = fit_bucket(picture, place.bucket, place.resized, self.subset.resize_interpolation)
        return _Decoded(to_tensor(picture.pixels), None if picture.mask is None else _mask_bytes(picture.mask))


@dataclass
class _Decoded:
    """Pixels [3, H, W] in -1..1 of a picture, and its mask as bytes [H, W]."""

    pixels: Tensor
    mask: np.ndarray | None


def cache_group(
    group: "DatasetGroup",
    encode: Callable[[Tensor], Tensor],
    *,
    to_disk: bool,
    batch_size: int,
    device: Any,
    process_index: int,
    num_processes: int,
    progress: Callable[[int, int], None] | None,
    wait: Callable[[], None] | None,
    on_machine: tuple[int, int] | None,
    family: str,
    encoder_id: str,
) -> int:
    """See DatasetGroup.cache_latents."""
    if not group.cacheable:
        raise UserError("cache_latents does not go with color_aug or random_crop.", key="cache_latents")
    tasks = _tasks(group, family, encoder_id, to_disk)
    own = _share(tasks, process_index, num_processes) if to_disk else tasks
    report = progress or (lambda done, total: None)
    todo = own
    trust = group.blueprint.skip_cache_check
    if to_disk:
        with ThreadPoolExecutor(_threads()) as pool:
            ready = list(pool.map(lambda task: _is_ready(task, trust), own))
        todo = [task for task, is_ready in zip(own, ready) if not is_ready]

    def fill(todo: list[_Task], done: int, total: int) -> None:
        report(done, total)
        with BackgroundWriter(2 * max(1, batch_size)) as writer:
            for batch, pictures in _decoded(_batches(todo, batch_size)):
                for task, cached in zip(batch, _encode(batch, pictures, encode, device, group.seed)):
                    if to_disk:
                        writer.submit(partial(_write, task, cached))
                    else:
                        task.record.latents = cached
                done += len(batch)
                report(done, total)
        if to_disk and wait is not None:
            wait()

    fill(todo, len(own) - len(todo), len(own))
    if to_disk and on_machine is not None and on_machine[1] < num_processes:
        # Another machine may have written its share where this one cannot see it.
        share = _share(tasks, *on_machine)
        lacking = [task for task in share if task.record.cache_path is None and not _is_ready(task, trust)]
        fill(lacking, len(share) - len(lacking), len(share))
        todo += lacking
    if to_disk:
        for task in tasks:
            _settle(task, trust)
    return len(todo)


def _share(tasks: list[_Task], index: int, count: int) -> list[_Task]:
    """One process's part. All sizes of one picture share a file, so they belong to one process."""
    owner = {path: number % count for number, path in enumerate(sorted({task.path for task in tasks}))}
    return [task for task in tasks if owner[task.path] == index]


def _threads() -> int:
    return min(8, os.cpu_count() or 1)


def _tasks(group: "DatasetGroup", family: str, encoder_id: str, to_disk: bool) -> list[_Task]:
    tasks = []
    stems: dict[str, str] = {}
    for dataset in group.datasets:
        for record in dataset.records:
            if record.npz_only:
                continue
            subset = dataset.subset_of(record)
            stem = os.path.splitext(record.path)[0]
            twin = stems.setdefault(stem, record.path) != record.path
            path = cache_paths(record.path, record.placement.image, family, twin)[1]
            source = source_of(record.path, subset.resize_interpolation, encoder_id) if to_disk else {}
            tasks.append(_Task(dataset, record, Wanted.of(record, subset), path, source))
    return tasks


def _candidates(task: _Task) -> Iterator[str]:
    """Files that may hold the latents already: the older name goes first, as in sd-scripts."""
    old = os.path.splitext(task.record.path)[0] + ".npz"
    for path in (old, task.path):
        if os.path.isfile(path):
            yield path


def _is_ready(task: _Task, trust: bool) -> bool:
    for path in _candidates(task):
        if trust:
            task.record.cache_path = path
            return True
        try:
            arrays = read_arrays(path)
        except DAMAGED:
            continue  # torn: it is encoded and written again
        if is_fresh(path, arrays, task.source) and parse_cache(arrays, task.wanted) is not None:
            task.record.cache_path = path
            return True
    return False


def _settle(task: _Task, trust: bool) -> None:
    """Note the file of a picture, also where another process wrote it."""
    if task.record.cache_path is None and not _is_ready(task, trust):
        raise DataError(
            f"the latents of {task.record.path} should be in {task.path} by now, but are not",
            key="cache_latents_to_disk",
            hint="Did another process stop, or the picture change meanwhile?",
        )


def _batches(tasks: Sequence[_Task], size: int) -> list[list[_Task]]:
    """Tasks of one bucket together; a file is never in two batches at once, as batches run one after the other."""
    size = max(1, size)
    by_bucket: dict[Size, list[_Task]] = {}
    for task in tasks:
        by_bucket.setdefault(task.record.placement.bucket, []).append(task)
    return [bucket[i : i + size] for bucket in by_bucket.values() for i in range(0, len(bucket), size)]


def _decoded(batches: Iterable[list[_Task]]) -> Iterator[tuple[list[_Task], list[_Decoded]]]:
    """Batches with their pictures; threads read the next ones while the caller encodes."""
    pool = ThreadPoolExecutor(_threads(), thread_name_prefix="cache-reader")
    try:
        waiting: deque[tuple[list[_Task], list[Future[_Decoded]]]] = deque()
        for batch in batches:
            waiting.append((batch, [pool.submit(task.decode) for task in batch]))
            if len(waiting) > AHEAD:
                first, futures = waiting.popleft()
                yield first, [future.result() for future in futures]
        while waiting:
            first, futures = waiting.popleft()
            yield first, [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)  # after an error nobody waits for the pictures that come next


def _encode(
    batch: list[_Task], pictures: list[_Decoded], encode: Callable[[Tensor], Tensor], device: Any, seed: int
) -> list[CachedLatents]:
    pixels = torch.stack([picture.pixels for picture in pictures])
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    # a VAE samples; with draws of their own, latents don't depend on which pictures were cached before
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed + zlib.crc32(os.path.basename(batch[0].record.path).encode()))
        try:
            latents = encode(pixels.to(device)).float().cpu()
            flipped = None
            if any(task.wanted.flipped for task in batch):
                flipped = encode(pixels.flip(-1).to(device)).float().cpu()
        except UserError as error:
            names = ", ".join(task.record.path for task in batch)
            raise UserError(f"{error.message.rstrip('.')}: {names}.", error.key, error.hint) from error
    results = []
    for number, (task, picture) in enumerate(zip(batch, pictures)):
        own = latents[number].clone()
        mirrored = flipped[number].clone() if flipped is not None and task.wanted.flipped else None
        if not torch.isfinite(own).all() or (mirrored is not None and not torch.isfinite(mirrored).all()):
            raise UserError(
                f"the VAE gave NaN or infinite values for {task.record.path}.",
                key="no_half_vae",
                hint="Set no_half_vae, or use a VAE that works in half precision.",
            )
        place = task.record.placement
        results.append(CachedLatents(own, mirrored, picture.mask, place.image, place.crop_ltrb))
    return results


def _write(task: _Task, cached: CachedLatents) -> None:
    """Write latents, keeping those of other sizes that the file already holds of the same picture, and note the file.

    One thread writes one after the other, so no other size gets lost in between.
    """
    arrays: Arrays = {}
    if os.path.isfile(task.path):
        try:
            there = read_arrays(task.path)
            arrays = there if is_fresh(task.path, there, task.source) else {}
        except DAMAGED:
            arrays = {}  # torn: written anew
    plain = arrays.get("latents")
    shape = tuple(cached.latents.shape)
    suffix = "" if plain is None or plain.shape == shape else task.wanted.suffix
    arrays[f"latents{suffix}"] = cached.latents.numpy()
    arrays[f"original_size{suffix}"] = np.array(cached.original_size)
    arrays[f"crop_ltrb{suffix}"] = np.array(cached.crop_ltrb, dtype=np.float64)
    if cached.flipped is not None:
        arrays[f"latents_flipped{suffix}"] = cached.flipped.numpy()
    if cached.mask is not None:
        arrays[f"alpha_mask{suffix}"] = cached.mask.astype(np.float32) / 255
    arrays["source"] = np.array(json.dumps(task.source, sort_keys=True))
    try:
        write_arrays(task.path, arrays)
    except OSError as error:
        raise UserError(
            f"cannot write the cache file {task.path}: {error.strerror or error}.",
            key="cache_latents_to_disk",
            hint="Free some space or make the folder writable, or cache in memory with cache_latents.",
        ) from error
    task.record.cache_path = task.path
