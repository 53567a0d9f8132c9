"""Data sets in columns: memory of a picture, order, buckets of many sizes at once; reading many files."""

import gc
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd_scripts.data.bucket import BatchOrder, shuffle
from sd_scripts.data.config import Blueprint, DatasetSpec, SubsetSpec
from sd_scripts.data.dataset import Dataset, DatasetGroup
from sd_scripts.data.loader import BatchLoader
from sd_scripts.data.records import FoundImages, Records, free_buckets, nearest_buckets
from sd_scripts.data.subset import FoundSubset
from sd_scripts.schema import imagesize
from sd_scripts.schema.buckets import Bucketer, Bucketing
from sd_scripts.schema.captions import CaptionRules
from sd_scripts.schema.errors import DataError
from sd_scripts.schema.filework import in_parallel, read_bytes


def in_memory(count: int, repeats: int = 1) -> DatasetGroup:
    """A data set of pictures that are nowhere, with names and captions of usual length."""
    rng = random.Random(count)
    names = [f"{number:08d}_picture.jpg" for number in range(count)]
    tags = [", ".join(rng.choices(("red", "blue", "tree"), k=8)) for _ in range(count)]
    captions = [f"a photo of thing {number}, {text}" for number, text in enumerate(tags)]
    sizes = np.array([(rng.randrange(400, 2000), rng.randrange(400, 2000)) for _ in range(count)], dtype=np.int32)
    spec = SubsetSpec("dreambooth", Path("/somewhere/pictures"), repeats, CaptionRules())
    subset = FoundSubset(spec, FoundImages("/somewhere/pictures/", names, captions, sizes), count)
    rule = Bucketing((512, 512), True)
    rows = np.stack([np.zeros(count), np.arange(count), np.full(count, repeats)], axis=1).astype(np.int32)
    dataset = Dataset(DatasetSpec((spec,), 1, rule), [subset], Records([subset.images], rows, Bucketer(rule)), 7)
    return DatasetGroup(Blueprint((dataset.spec,), "somewhere"), [dataset], 7)


def measured(count: int) -> float:
    """Bytes of memory for each picture of a data set with the order of an epoch, and every record looked at."""
    gc.collect()
    tracemalloc.start()
    group = in_memory(count)
    loader = BatchLoader(group)
    order = loader.order(1)
    dataset, number = group.locate(order[0])
    dataset.order.pictures(1, number)
    assert sum(len(record.caption) > 10 for record in dataset.records) == count
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / count


def test_memory_of_a_picture() -> None:
    small, large = measured(5_000), measured(20_000)
    assert large < 1000
    assert large < 1.2 * small


def test_the_first_batch_is_asked_for_without_a_list_of_all() -> None:
    loader = BatchLoader(in_memory(2_000))
    wanted = loader.order(1)
    assert len(wanted) == 2_000
    assert sorted(wanted) == list(range(2_000))


def test_shuffling_asks_as_python_does() -> None:
    for seed in range(20):
        ours, theirs = random.Random(seed), random.Random(seed)
        for count in (0, 1, 2, 3, 4, 7, 8, 9, 100, 1025):
            left, right = list(range(count)), list(range(count))
            shuffle(left, ours)
            theirs.shuffle(right)
            assert left == right
        assert ours.getstate() == theirs.getstate()


def test_many_sizes_at_once_find_the_buckets_of_one_at_a_time() -> None:
    rng = random.Random(3)
    bucketer = Bucketer(Bucketing((512, 768), True, 256, 1024, 64))
    sizes = [(rng.randrange(1, 3000), rng.randrange(1, 3000)) for _ in range(3000)] + bucketer.sizes
    found = nearest_buckets(np.array(sizes, dtype=np.int32), bucketer.sizes)
    assert [tuple(pair) for pair in found.tolist()] == [bucketer.select(*size).bucket for size in sizes]


@pytest.mark.parametrize("step", [8, 16, 32, 64])
@pytest.mark.parametrize("resolution", [(64, 64), (512, 512), (512, 768), (1024, 1024)])
def test_many_sizes_at_once_make_the_buckets_of_one_at_a_time(step: int, resolution: tuple[int, int]) -> None:
    rng = random.Random(step)
    rule = Bucketing(resolution, True, 256, 1024, step, no_upscale=True)
    bucketer = Bucketer(rule)
    sizes = [(rng.randrange(1, 2500), rng.randrange(1, 2500)) for _ in range(2000)]
    sizes += [(rng.randrange(1, 20000), rng.randrange(1, 90)) for _ in range(300)]
    sizes += [(rng.randrange(1, 40) * step, rng.randrange(1, 40) * step) for _ in range(300)]
    found = free_buckets(np.array(sizes, dtype=np.int32), rule)
    for size, bucket in zip(sizes, found.tolist()):
        if all(bucket):
            assert bucketer.select(*size).bucket == tuple(bucket), size
        else:
            with pytest.raises(DataError, match="smaller than one bucket step"):
                bucketer.select(*size)


def test_members_of_buckets_are_repeated_and_in_order() -> None:
    group = in_memory(500, repeats=3)
    dataset = group.datasets[0]
    members = dataset.records.members()
    wanted: dict[Any, list[int]] = {}
    for number, record in enumerate(dataset.records):
        wanted.setdefault(record.placement.bucket, []).extend([number] * 3)
    assert [part.tolist() for part in members] == [wanted[size] for size in sorted(wanted)]
    assert [bucket.size for bucket in dataset.buckets] == sorted(wanted)
    assert dataset.num_train_images == 1500
    errors = [abs(record.placement.ar_error) for record in dataset.records]
    assert dataset.mean_ar_error == pytest.approx(sum(errors) / len(errors), rel=1e-12)
    again = BatchOrder([wanted[size] for size in sorted(wanted)], 1, 7)
    assert [again.pictures(2, i) for i in range(50)] == [dataset.order.pictures(2, i) for i in range(50)]


def test_a_record_keeps_what_is_noted_in_it() -> None:
    records = in_memory(300).datasets[0].records
    records[5].cache_path = "somewhere.npz"
    assert [record.cache_path for record in records][4:7] == [None, "somewhere.npz", None]
    assert not records.all_latents_in_memory


def slow(item: int) -> int:
    time.sleep(0.0002)
    return item * 2


@pytest.mark.parametrize("work", [lambda item: item * 2, slow], ids=["quick", "slow"])
def test_results_come_in_order_also_where_the_disk_is_slow(work: Callable[[int], int]) -> None:
    for count in (0, 1, 255, 256, 257, 2000):
        assert in_parallel(work, range(count)) == [2 * number for number in range(count)]


def test_errors_come_out_of_the_threads() -> None:
    def work(item: int) -> int:
        if item == 1500:
            raise DataError("file 1500")
        return slow(item)

    with pytest.raises(DataError, match="1500"):
        in_parallel(work, range(2000))


def test_long_files_are_read_whole(tmp_path: Path) -> None:
    for length in (0, 1, 65535, 65536, 65537, 3_000_000):
        content = random.Random(length).randbytes(length)
        (tmp_path / "file").write_bytes(content)
        assert read_bytes(tmp_path / "file") == content


def test_headers_are_read_without_the_pixels(tmp_path: Path) -> None:
    """A large JPEG with a long EXIF block costs a few reads of a few bytes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "x" * 50_000
    pixels = np.random.default_rng(1).integers(0, 255, (400, 600, 3), dtype=np.uint8)
    path = tmp_path / "large.jpg"
    Image.fromarray(pixels).save(path, exif=exif)
    read: list[int] = []

    class Counted(imagesize._Bytes):
        def at(self, position: int, count: int) -> bytes:
            read.append(count)
            return super().at(position, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagesize, "_Bytes", Counted)
        header = imagesize.read_header(path)
    assert header is not None
    assert (header.size, header.orientation) == ((400, 600), 6)
    assert sum(read) < 60_000 < path.stat().st_size
