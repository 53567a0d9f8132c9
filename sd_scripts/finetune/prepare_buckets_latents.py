"""Training sizes into a metadata file, latents into .npz files: `prepare_buckets_latents.py --help`.

`python sd_scripts/finetune/prepare_buckets_latents.py <pictures> <in.json> <out.json> <model>`
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sd_scripts.finetune.metadata import check_keys, key_of, read_metadata, write_metadata
from sd_scripts.schema.buckets import Bucketer, Bucketing, Size
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools_captions import PrepareBucketsOptions
from sd_scripts.schema.values import parse_resolution
from sd_scripts.tools.common import Ticker, run, say
from sd_scripts.tools.files import some_pictures

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from sd_scripts.finetune.latents import Work

PROG = "prepare_buckets_latents.py"
OPTIONS = PrepareBucketsOptions
STRIDE = 8


def bucketing(options: PrepareBucketsOptions) -> Bucketing:
    """The rule for training sizes. Raises UserError for a range that holds no size."""
    resolution = parse_resolution(options.max_resolution)
    if not options.bucket_no_upscale and options.min_bucket_reso > min(resolution):
        raise UserError(
            f"min_bucket_reso is {options.min_bucket_reso}, above the shorter side of max_resolution "
            f"({options.max_resolution}).",
            "min_bucket_reso",
        )
    if options.max_bucket_reso < options.min_bucket_reso:
        raise UserError("max_bucket_reso is smaller than min_bucket_reso.", "max_bucket_reso")
    return Bucketing(
        resolution,
        True,
        options.min_bucket_reso,
        options.max_bucket_reso,
        options.bucket_reso_steps,
        options.bucket_no_upscale,
    )


def npz_path(picture: Path, root: Path, recursive: bool) -> Path:
    """File of a picture's latents: in the folder itself, or beside the picture where folders below count too."""
    folder = picture.parent if recursive else root
    return folder / f"{picture.stem}.npz"


def plan(pictures: Sequence[Path], options: PrepareBucketsOptions) -> list[Work]:
    """Every picture's training size, from headers alone. Raises UserError naming one that cannot be used."""
    from sd_scripts.data.image import picture_size
    from sd_scripts.finetune.latents import Work

    bucketer = Bucketer(bucketing(options))
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(picture_size, pictures))
    works = []
    root = Path(options.train_data_dir)
    for picture, size in zip(pictures, sizes):
        try:
            place = bucketer.select(*size)
        except UserError as error:
            raise UserError(f"{picture}: {error.message}.", error.key, error.hint) from error
        target = (place.bucket[0] // STRIDE * STRIDE, place.bucket[1] // STRIDE * STRIDE)
        works.append(Work(picture, replace(place, bucket=target), target, npz_path(picture, root, options.recursive)))
    _refuse_twins(works)
    return works


def _refuse_twins(works: Sequence[Work]) -> None:
    seen: dict[Path, Path] = {}
    for work in works:
        other = seen.setdefault(work.npz, work.picture)
        if other != work.picture:
            raise UserError(f"{other} and {work.picture} would share {work.npz}.", hint="Rename one of them.")


def report(works: Sequence[Work]) -> None:
    """Print how many pictures each training size has, and how much their shapes differ from it."""
    counts: Counter[Size] = Counter(work.size for work in works)
    for size, count in sorted(counts.items()):
        say(f"{size[0]} x {size[1]}: {count} pictures")
    error = sum(abs(work.place.ar_error) for work in works) / len(works)
    say(f"mean difference between the shapes of pictures and buckets: {error:.4f}")


def load(options: PrepareBucketsOptions) -> AutoencoderKL:
    """The VAE, on the graphics card where there is one. Raises UserError."""
    import torch

    from sd_scripts.models.loading import load_vae

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    dtype = dtypes[options.mixed_precision]
    if device == "cpu" and dtype == torch.float16:
        say("fp16 works on GPUs only; bf16 is used instead")
        dtype = torch.bfloat16
    return load_vae(options.model_name_or_path, dtype).to(device).eval()


def work(options: PrepareBucketsOptions) -> None:
    """Choose sizes, encode, write the metadata last: it is only there when all latents are. Raises UserError."""
    check_keys(options.full_path, options.recursive)
    metadata = read_metadata(Path(options.in_json))
    pictures = some_pictures(options.train_data_dir, "train_data_dir", options.recursive)
    works = plan(pictures, options)
    report(works)
    todo = works
    if options.skip_existing:
        with ThreadPoolExecutor() as pool:
            there = list(pool.map(lambda one: one.is_there(options.flip_aug), works))
        todo = [one for one, is_there in zip(works, there) if not is_there]
        say(f"{len(works) - len(todo)} pictures have their latents already")
    if todo:
        _encode(todo, options)
    keys = {key_of(one.picture, options.full_path) for one in works}
    strange = [key for key in metadata if key not in keys]
    for one in works:
        metadata.setdefault(key_of(one.picture, options.full_path), {})["train_resolution"] = list(one.size)
    write_metadata(Path(options.out_json), metadata)
    say(f"{len(works)} training sizes written to {options.out_json}")
    if strange:
        say(f"{len(strange)} entries have no picture in {options.train_data_dir} (such as {strange[0]})")


def _encode(todo: Sequence[Work], options: PrepareBucketsOptions) -> None:
    from sd_scripts.finetune.latents import encode_all

    ticker = Ticker("encoded", len(todo))
    encode_all(
        todo,
        load(options),
        batch_size=options.batch_size,
        flip=options.flip_aug,
        threads=options.max_data_loader_n_workers or min(8, os.cpu_count() or 1),
        progress=ticker.at,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
