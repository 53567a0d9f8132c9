"""Caching reads the next pictures and writes the last files while the encoder works: shown by events, not by time."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_kit import blueprint
from PIL import Image
from torch import Tensor

from sd_scripts.data.batch import make_batch
from sd_scripts.data.cache import AHEAD
from sd_scripts.data.dataset import DatasetGroup, build
from sd_scripts.data.npz import BackgroundWriter, read_arrays, read_shapes
from sd_scripts.schema.errors import DataError, UserError

Folder = Callable[..., Path]
PATIENCE = 20
"""Seconds after which something that should happen counts as not happening."""


class Watch:
    """What this process does with files, told by Python itself. Opened and finished files by name, and by whom."""

    def __init__(self) -> None:
        self.on = False
        self.opened: dict[str, threading.Event] = {}
        self.finished: dict[str, str] = {}
        self.before_finishing: Callable[[str], None] = lambda name: None

    def event(self, name: str) -> threading.Event:
        return self.opened.setdefault(name, threading.Event())

    def __call__(self, kind: str, values: tuple[Any, ...]) -> None:
        if not self.on or kind not in ("open", "os.rename"):
            return
        if kind == "open" and isinstance(values[0], str | os.PathLike):
            self.event(os.path.basename(values[0])).set()
        elif kind == "os.rename":
            name = os.path.basename(values[1])
            self.before_finishing(name)
            self.finished[name] = threading.current_thread().name


WATCH = Watch()
sys.addaudithook(WATCH)  # stays for good, and looks at nothing while `on` is false


@pytest.fixture
def watch() -> Iterator[Watch]:
    WATCH.__init__()  # type: ignore[misc]
    WATCH.on = True
    yield WATCH
    WATCH.on = False


def group_of(tmp_path: Path, **values: Any) -> DatasetGroup:
    values = {"train_data_dir": tmp_path / "train", "enable_bucket": False} | values
    return build(blueprint(**values), 1)[0]


def latents(pixels: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(pixels, 8)[:, [0, 1, 2, 0]]


COUNT = 8


@pytest.fixture
def pictures(folder: Folder) -> Path:
    return folder("1_a", [(64, 64)] * COUNT)


def test_the_next_picture_is_read_before_the_last_one_is_encoded(tmp_path: Path, pictures: Path, watch: Watch) -> None:
    group = group_of(tmp_path)
    for name in list(watch.opened):
        watch.opened[name].clear()  # looking at sizes opened them too
    calls = []

    def encode(pixels: Tensor) -> Tensor:
        number = len(calls)
        if number + 1 < COUNT:
            assert watch.event(f"im{number + 1:02d}.png").wait(PATIENCE), f"picture {number + 1} waits for the encoder"
        opened = sum(event.is_set() for name, event in watch.opened.items() if name.endswith(".png"))
        assert opened <= number + 1 + AHEAD, "too many pictures at once"
        calls.append(number)
        return latents(pixels)

    assert group.cache_latents(encode) == COUNT
    assert len(calls) == COUNT


def test_a_file_is_written_while_the_next_picture_is_encoded(tmp_path: Path, pictures: Path, watch: Watch) -> None:
    group = group_of(tmp_path)
    second, waited = threading.Event(), []

    def hold(name: str) -> None:
        if name.startswith("im00"):
            waited.append(second.wait(PATIENCE))

    watch.before_finishing = hold
    calls = []

    def encode(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        if len(calls) == 2:
            second.set()
        return latents(pixels)

    group.cache_latents(encode, to_disk=True)
    assert waited == [True]
    assert sorted(watch.finished) == [f"im{n:02d}_0064x0064_sd.npz" for n in range(COUNT)]
    assert threading.current_thread().name not in watch.finished.values()
    assert len(set(watch.finished.values())) == 1  # one writer: sizes of one picture share a file
    memory = group_of(tmp_path)
    memory.cache_latents(latents)
    for index in range(COUNT):
        one, other = make_batch(group, index, 1).latents, make_batch(memory, index, 1).latents
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_text_encoder_outputs_are_written_while_the_next_are_encoded(
    tmp_path: Path, folder: Folder, watch: Watch
) -> None:
    folder("1_a", [(64, 64)] * COUNT, [f"caption {number}" for number in range(COUNT)])
    group = group_of(tmp_path)
    second, waited, calls = threading.Event(), [], []

    def hold(name: str) -> None:
        if name.startswith("im00"):
            waited.append(second.wait(PATIENCE))

    watch.before_finishing = hold

    def encode(captions: list[str]) -> list[dict[str, Tensor]]:
        calls.append(captions)
        if len(calls) == 2:
            second.set()
        return [{"pool2": torch.ones(4)} for _ in captions]

    assert group.cache_text_outputs(encode, to_disk=True) == COUNT
    assert waited == [True]
    assert threading.current_thread().name not in watch.finished.values()


def test_a_full_disk_ends_the_caching_with_a_sentence(tmp_path: Path, pictures: Path) -> None:
    blocked = pictures / "im00_0064x0064_sd.npz"
    blocked.mkdir()
    (blocked / "in the way").write_text("x")
    encoded = []

    def encode(pixels: Tensor) -> Tensor:
        encoded.append(len(pixels))
        return latents(pixels)

    with pytest.raises(UserError, match=r"cannot write the cache file .*im00_0064x0064_sd\.npz"):
        group_of(tmp_path).cache_latents(encode, to_disk=True)


def test_a_broken_picture_is_named_and_ends_the_caching(tmp_path: Path, pictures: Path) -> None:
    group = group_of(tmp_path)
    file = pictures / "im03.png"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DataError, match=r"im03\.png"):
        group.cache_latents(latents)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("cache-")]


def test_an_encoder_that_fails_leaves_no_thread_and_no_torn_file(tmp_path: Path, pictures: Path) -> None:
    calls = []

    def encode(pixels: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return latents(pixels)

    with pytest.raises(RuntimeError, match="out of memory"):
        group_of(tmp_path).cache_latents(encode, to_disk=True)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("cache-")]
    files = list(pictures.glob("*.npz"))
    assert len(files) <= 2
    assert all(read_arrays(file)["latents"].shape == (4, 8, 8) for file in files)
    assert not list(pictures.glob(".*tmp"))


def test_the_writer_keeps_the_order_and_hands_errors_on() -> None:
    done: list[int] = []
    with BackgroundWriter(2) as writer:
        for number in range(9):
            writer.submit(lambda number=number: done.append(number))
    assert done == list(range(9))

    def fail() -> None:
        raise UserError("no space")

    with pytest.raises(UserError, match="no space"), BackgroundWriter(2) as writer:
        writer.submit(fail)
    with pytest.raises(UserError, match="no space"), BackgroundWriter(1) as writer:
        for _ in range(5):
            writer.submit(fail)


def test_shapes_and_texts_without_values(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, one=np.zeros((3, 4), np.float32), two=np.array("a text"), three=np.float64(2))
    shapes, texts = read_shapes(path)
    assert shapes == {"one": (3, 4), "two": (), "three": ()}
    assert {name: str(value) for name, value in texts.items()} == {"two": "a text"}


def test_everything_at_once_in_the_files_of_a_family(tmp_path: Path, folder: Folder) -> None:
    place = folder("a", [(64, 64), (96, 64), (70, 131)])
    for path in place.glob("*.png"):
        picture = Image.open(path).convert("RGBA")
        alpha = np.tile(np.linspace(0, 255, picture.width).astype(np.uint8), (picture.height, 1))
        picture.putalpha(Image.fromarray(alpha))
        picture.save(path)
    text = "".join(
        f"[[datasets]]\nresolution = {size}\nenable_bucket = true\nbatch_size = 2\n[[datasets.subsets]]\n"
        f"image_dir = '{place}'\nflip_aug = {flip}\nalpha_mask = true\nnum_repeats = 3\n"
        for size, flip in ((64, "true"), (128, "false"), (32, "true"))
    )
    (tmp_path / "data.toml").write_text(text)

    def group() -> DatasetGroup:
        return group_of(tmp_path, dataset_config=tmp_path / "data.toml", train_data_dir=None, bucket_reso_steps=16)

    first, memory = group(), group()
    assert first.cache_latents(latents, to_disk=True, family="sdxl", batch_size=2) == 9
    assert sorted(path.name for path in place.glob("*.npz")) == [
        "im00_0064x0064_sdxl.npz",
        "im01_0096x0064_sdxl.npz",
        "im02_0070x0131_sdxl.npz",
    ]
    again = group()
    assert again.cache_latents(latents, to_disk=True, family="sdxl") == 0
    assert group().cache_latents(latents, to_disk=True, family="sd") == 9
    memory.cache_latents(latents)
    flips = set()
    for epoch in (1, 2):
        for index in range(len(first)):
            one, two, three = (make_batch(each, index, epoch) for each in (first, again, memory))
            flips.update(one.flipped)
            for name in ("latents", "masks", "crop_top_lefts", "original_sizes", "target_sizes"):
                values = [getattr(batch, name) for batch in (one, two, three)]
                assert torch.equal(values[0], values[1])
                assert torch.equal(values[0], values[2])
    assert flips == {True, False}
