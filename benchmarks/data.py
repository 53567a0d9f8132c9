"""How fast large folders of pictures are ready for training, what a picture costs in memory, and whether caching
latents decodes while it encodes.

    python benchmarks/data.py                      1,000, 10,000 and 100,000 generated pictures: some minutes
    python benchmarks/data.py --counts 1000        a check in half a minute

Every measurement is a fresh process, and the contestants alternate:

- plain: a loop over the sorted names that opens every picture with Pillow for its size and reads its caption.
- first: data sets built, buckets and order made, the first batch known; nothing remembered from before.
- again: the same with what the first time left in the cache folder.

The clock starts after the imports. The files lie in the system's cache, so this measures the program, not the disk.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import (
    BenchmarkError,
    alternate,
    environment,
    last_json,
    machine,
    markdown,
    medians,
    peak_of,
    python,
    run_fresh,
)

CONTESTANTS = ("plain", "first", "again")
GOALS = {"first": 4.0, "again": 1.0}  # seconds for 100,000 pictures
GOAL_COUNT, GOAL_BYTES = 100_000, 1000
FIGURES = {
    "ready": "ready, s",
    "processor": "processor time, s",
    "micro": "a picture, µs",
    "bytes": "memory a picture, bytes",
    "peak_bytes": "at most, bytes",
}
MEMORY_VARIABLE = "KOHYA_GUI_CACHE"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="+", type=int, default=[1_000, 10_000, 100_000], help="pictures in a folder")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contestant")
    parser.add_argument("--cache_info", action="store_true", help="with the option of this name")
    parser.add_argument("--no_upscale", action="store_true", help="with bucket_no_upscale: as many buckets as shapes")
    parser.add_argument("--folder", type=Path, help="keep the pictures here for the next time")
    parser.add_argument("--skip_overlap", action="store_true", help="leave out the caching of latents")
    parser.add_argument("--save", type=Path, help="write all numbers to this JSON file")
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_pictures(folder: Path, count: int) -> Path:
    """A folder for training with `count` valid pictures, half PNG and half JPEG, and a caption beside each."""
    from PIL import Image

    root = folder / f"pictures-{count}"
    pictures = root / "1_thing"
    if (root / "complete").exists():
        return root
    pictures.mkdir(parents=True, exist_ok=True)
    rng = random.Random(count)
    kinds = []
    for number in range(400):
        ending = ".png" if number % 2 else ".jpg"
        content = io.BytesIO()
        size = rng.randrange(300, 2400), rng.randrange(300, 2400)
        Image.new("1" if number % 2 else "L", size).save(content, "PNG" if number % 2 else "JPEG", quality=1)
        kinds.append((ending, content.getvalue()))
    words = [f"word{number}" for number in range(3000)]
    for number in range(count):
        ending, bytes_ = kinds[number % len(kinds)]
        for name, content_ in (
            (f"{number:06d}{ending}", bytes_),
            (f"{number:06d}.txt", ", ".join(rng.choices(words, k=12)).encode()),
        ):
            with open(pictures / name, "wb", buffering=0) as file:
                file.write(content_)
    (root / "complete").touch()
    return root


def resident() -> int:
    """Resident bytes of this process now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def processor_seconds() -> float:
    """Processor time of this process and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def plain(root: Path) -> Any:
    """Sizes and captions as anybody would write it."""
    from PIL import Image

    folder = root / "1_thing"
    found = []
    for name in sorted(os.listdir(folder)):
        stem, ending = os.path.splitext(name)
        if ending not in (".png", ".jpg"):
            continue
        with Image.open(folder / name) as image:
            size = image.size
        with open(folder / f"{stem}.txt", encoding="utf-8") as file:
            found.append((str(folder / name), file.readline().strip(), size))
    return found


def ready_loader(root: Path, settings: dict[str, Any]) -> Any:
    """Data sets of a folder up to the pictures of the first batch, none of which is decoded."""
    from sd_scripts.data.config import build_blueprint
    from sd_scripts.data.dataset import build
    from sd_scripts.data.loader import BatchLoader
    from sd_scripts.schema.dataset import CaptionOptions, DatasetOptions
    from sd_scripts.schema.validation import ValidationOptions

    dataset = DatasetOptions(
        train_data_dir=str(root), resolution="512", enable_bucket=True, bucket_no_upscale=settings["no_upscale"],
        cache_info=settings["cache_info"],
    )  # fmt: skip
    blueprint = build_blueprint(dataset, CaptionOptions(caption_extension=".txt"), ValidationOptions())
    group, _ = build(blueprint, 1)
    loader = BatchLoader(group)
    data, number = group.locate(loader.order(1)[0])
    first = [data.records[picture] for picture in data.order.pictures(1, number)]
    return group, loader, first


def probe(kind: str, settings: dict[str, Any]) -> dict[str, float]:
    """In the fresh process: seconds, processor seconds and bytes a picture."""
    root, count = Path(settings["root"]), int(settings["count"])
    if kind == "overlap":
        return overlap(root)
    import PIL.Image

    PIL.Image.init()
    if kind != "plain":
        import sd_scripts.data.loader
        import sd_scripts.schema.validation  # noqa: F401
    before, clock, processor = resident(), time.perf_counter(), processor_seconds()
    kept = plain(root) if kind == "plain" else ready_loader(root, settings)
    ready, processor = time.perf_counter() - clock, processor_seconds() - processor
    after, peak = resident(), peak_of(os.getpid())
    del kept
    return {
        "ready": ready,
        "processor": processor,
        "micro": ready / count * 1e6,
        "bytes": (after - before) / count,
        "peak_bytes": max(0, peak - before) / count,
    }


def measure(kind: str, root: Path, count: int, options: argparse.Namespace, remembered: Path) -> dict[str, float]:
    """One contestant in a process of its own."""
    settings = {
        "root": str(root), "count": count, "cache_info": options.cache_info, "no_upscale": options.no_upscale,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as empty:
        env = environment(threads=1) | {MEMORY_VARIABLE: empty if kind == "first" else str(remembered)}
        if kind == "first":
            (root / "1_thing" / "metadata_cache.json").unlink(missing_ok=True)
        done = run_fresh(python(__file__, "--probe", kind, json.dumps(settings)), env)
    return last_json(done.stdout)


def make_photos(folder: Path, count: int = 24) -> Path:
    """JPEGs of 1536 pixels, so that decoding one takes a while."""
    import numpy as np
    from PIL import Image

    root = folder / "photos"
    (root / "1_thing").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8))
        coarse.resize((1536, 1536), Image.Resampling.BICUBIC).save(root / "1_thing" / f"{number:02d}.jpg", quality=95)
    return root


def overlap(root: Path) -> dict[str, float]:
    """Seconds for decoding alone, encoding alone and both, with an encoder that keeps the processor free (a GPU)."""
    import torch

    torch.set_num_threads(1)

    def run(encode: Callable[[torch.Tensor], torch.Tensor]) -> float:
        group, _, _ = ready_loader(root, {"cache_info": False, "no_upscale": False})
        clock = time.perf_counter()
        group.cache_latents(encode, batch_size=2)
        return time.perf_counter() - clock

    def nothing(pixels: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(pixels), 4, pixels.shape[2] // 8, pixels.shape[3] // 8)

    batches = 0

    def waiting(pixels: torch.Tensor) -> torch.Tensor:
        nonlocal batches
        batches += 1
        time.sleep(pause)
        return nothing(pixels)

    run(nothing)  # files into memory, libraries loaded
    pause = 0.0
    decode = run(nothing)
    pictures = len(list((root / "1_thing").glob("*.jpg")))
    pause = decode / (pictures / 2)
    both = run(waiting)
    encode = pause * batches
    return {"decode": decode, "encode": encode, "both": both, "hidden": (decode + encode - both) / min(decode, encode)}


def table(results: dict[int, dict[str, dict[str, float]]]) -> str:
    """Medians, with ratios to the plain loop of the same number of pictures."""
    rows = []
    for count, contestants in results.items():
        base = contestants["plain"]
        for name, numbers in contestants.items():
            cells = [f"{numbers['ready']:.2f} ({numbers['ready'] / base['ready']:.2f})"]
            cells += [f"{numbers['processor']:.2f}", f"{numbers['micro']:.1f}"]
            cells += [f"{numbers['bytes']:.0f}", f"{numbers['peak_bytes']:.0f}"]
            rows.append([f"{count:,}", name, *cells])
    return markdown(["pictures", "run", *FIGURES.values()], rows)


def growth(results: dict[int, dict[str, dict[str, float]]]) -> list[str]:
    """What one more picture costs between one number of pictures and the next: constant where all is linear."""
    lines = []
    counts = sorted(results)
    for few, many in zip(counts, counts[1:]):
        parts = []
        for name in results[many]:
            small, large = results[few][name], results[many][name]
            micro = (large["processor"] - small["processor"]) / (many - few) * 1e6
            size = (large["bytes"] * many - small["bytes"] * few) / (many - few)
            parts.append(f"{name} {micro:.1f} µs of processor time and {size:.0f} bytes")
        lines.append(f"From {few:,} to {many:,}, one more picture costs: {', '.join(parts)}.")
    return lines


def missed(results: dict[int, dict[str, dict[str, float]]]) -> list[str]:
    """Sentences on goals that were not reached; said for 100,000 pictures only."""
    numbers = results.get(GOAL_COUNT, {})
    lines = []
    for name, goal in GOALS.items():
        if name in numbers and numbers[name]["ready"] > goal:
            lines.append(f"{name}: ready after {numbers[name]['ready']:.2f} s, goal {goal:g} s")
        if name in numbers and numbers[name]["bytes"] > GOAL_BYTES:
            lines.append(f"{name}: {numbers[name]['bytes']:.0f} bytes a picture, goal {GOAL_BYTES}")
    return lines


def main() -> int:
    """Measure, print the tables, say which goals were missed (exit code 1 for that)."""
    options = arguments()
    if options.probe:
        print(json.dumps(probe(options.probe[0], json.loads(options.probe[1]))), flush=True)
        return 0
    results: dict[int, dict[str, dict[str, float]]] = {}
    caching: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for count in options.counts:
            clock = time.perf_counter()
            root = make_pictures(folder, count)
            print(f"{count:,} pictures made in {time.perf_counter() - clock:.1f} s", flush=True)
            remembered = Path(temporary) / f"remembered-{count}"
            measure("again", root, count, options, remembered)  # fills what is remembered; not counted
            runs = alternate(
                {name: partial(measure, name, root, count, options, remembered) for name in CONTESTANTS}, options.rounds
            )
            results[count] = {name: medians(rows) for name, rows in runs.items()}
        if not options.skip_overlap:
            photos = make_photos(folder)
            rows = alternate({"caching": partial(measure, "overlap", photos, 24, options, folder)}, options.rounds)
            caching = medians(rows["caching"])
    print(
        f"\n{machine(('torch', 'pillow'))}. {time.strftime('%Y-%m-%d')}, median of {options.rounds} fresh processes.\n"
    )
    print(table(results))
    print("\n".join(["", *growth(results)]))
    if caching:
        parts = ", ".join(f"{name} {caching[name]:.2f} s" for name in ("decode", "encode", "both"))
        print(f"\nCaching latents of 24 pictures: {parts}; {caching['hidden']:.0%} of the shorter part is hidden.")
    if options.save:
        options.save.write_text(json.dumps({"folders": results, "caching": caching}, indent=1) + "\n", "utf-8")
    lines = missed(results)
    print("\n".join(["", *(lines or ["goals reached" if GOAL_COUNT in results else "goals are for 100,000 pictures"])]))
    return 1 if lines else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchmarkError as error:
        sys.exit(f"benchmark failed: {error}")
