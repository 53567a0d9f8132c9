"""Batches and the loader: what is in a batch, determinism, workers, resuming, processes, looking inside."""

import copy
import random
from collections.abc import Callable
from dataclasses import fields
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_kit import blueprint
from PIL import Image

from sd_scripts.data.batch import Batch, make_batch
from sd_scripts.data.dataset import DatasetGroup, build
from sd_scripts.data.debug import inspect_batches
from sd_scripts.data.image import load_picture
from sd_scripts.data.loader import BatchLoader
from sd_scripts.schema.errors import DataError, UserError

Folder = Callable[..., Path]
SIZES = [(64, 64), (96, 64), (64, 96), (80, 80), (130, 70)]
LIVELY = {
    "flip_aug": True,
    "color_aug": True,
    "random_crop": True,
    "shuffle_caption": True,
    "caption_tag_dropout_rate": 0.3,
    "train_batch_size": 2,
}


def group_of(tmp_path: Path, seed: int = 1, **values: Any) -> DatasetGroup:
    values = {"train_data_dir": tmp_path / "train", "enable_bucket": True, "bucket_reso_steps": 16} | values
    return build(blueprint(**values), seed)[0]


def same(one: Batch, other: Batch) -> bool:
    for field in fields(Batch):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, torch.Tensor):
            if not torch.equal(left, right):
                return False
        elif left != right:
            return False
    return True


@pytest.fixture
def dogs(folder: Folder) -> Path:
    return folder("2_dog", SIZES, ["a, b, c, d, e"] * 5)


def test_what_is_in_a_batch(tmp_path: Path, dogs: Path, folder: Folder) -> None:
    folder("1_wolf", [(64, 64)], root="reg")
    group = group_of(tmp_path, reg_data_dir=tmp_path / "reg", prior_loss_weight=0.25, train_batch_size=2)
    batches = list(BatchLoader(group).epoch(1))
    assert len(batches) == len(group)
    for batch in batches:
        assert batch.images is not None
        assert batch.latents is None
        assert batch.masks is None
        assert batch.images.shape[1:] == (3, *batch.target_sizes[0].tolist())
        assert batch.images.dtype == torch.float32
        for path, weight, caption in zip(batch.paths, batch.loss_weights.tolist(), batch.captions):
            assert (weight, caption) == ((0.25, "wolf") if "wolf" in path else (1.0, "a, b, c, d, e"))
        assert batch.network_multipliers.tolist() == [1.0] * len(batch)
    paths = [path for batch in batches for path in batch.paths]
    assert len(paths) == 20
    assert sum("wolf" in path for path in paths) == 10


def test_sizes_and_crops_of_a_wide_picture(tmp_path: Path, folder: Folder) -> None:
    place = folder("1_a", [(200, 100)])
    batch = make_batch(group_of(tmp_path, enable_bucket=False), 0, 1)
    assert batch.original_sizes.tolist() == [[100, 200]]
    assert batch.target_sizes.tolist() == [[64, 64]]
    assert batch.crop_top_lefts.tolist() == [[16, 0]]
    wanted = load_picture(place / "im00.png").resize((128, 64)).crop(32, 0, (64, 64)).pixels
    assert batch.images is not None
    assert torch.allclose(batch.images[0], torch.from_numpy(wanted).permute(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_draws_follow_from_seed_and_epoch_alone(tmp_path: Path, dogs: Path) -> None:
    def epoch(seed: int, number: int) -> list[Batch]:
        random.seed(random.SystemRandom().random())
        torch.seed()
        return list(BatchLoader(group_of(tmp_path, seed, **LIVELY)).epoch(number))

    first = epoch(1, 2)
    assert all(same(a, b) for a, b in zip(first, epoch(1, 2)))
    assert [b.captions for b in first] != [b.captions for b in epoch(1, 3)]
    assert [b.captions for b in first] != [b.captions for b in epoch(2, 2)]


@pytest.mark.parametrize(("workers", "persistent"), [(1, False), (2, True)])
def test_workers_change_nothing(tmp_path: Path, dogs: Path, workers: int, persistent: bool) -> None:
    group = group_of(tmp_path, **LIVELY)
    alone, helped = BatchLoader(group), BatchLoader(group, workers=workers, persistent=persistent)
    assert (alone.workers, helped.workers) == (0, workers)
    torch.manual_seed(3)
    random.seed(3)
    before = (torch.random.get_rng_state(), random.getstate())
    for epoch in (1, 2):
        ours, theirs = list(alone.epoch(epoch)), list(helped.epoch(epoch))
        assert len(ours) == len(theirs) == len(group)
        assert all(same(a, b) for a, b in zip(ours, theirs))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()
    helped.close()


def test_resuming_in_the_middle_of_an_epoch(tmp_path: Path, dogs: Path) -> None:
    values = LIVELY | {"token_warmup_step": 12}
    whole = BatchLoader(group_of(tmp_path, **values))
    expected = [batch for epoch in (1, 2) for batch in whole.epoch(epoch, global_step=(epoch - 1) * len(whole))]
    interrupted = BatchLoader(group_of(tmp_path, **values))
    length = len(interrupted)
    stream = interrupted.epoch(2, global_step=length)
    for _ in range(3):
        next(stream)
    state = interrupted.state_dict()
    assert (state["epoch"], state["position"]) == (2, 3)
    resumed = BatchLoader(group_of(tmp_path, **values), workers=1)
    assert resumed.load_state_dict(state) == []
    rest = list(resumed.epoch(state["epoch"], start=state["position"], global_step=length + 3))
    assert len(rest) == length - 3
    assert all(same(a, b) for a, b in zip(rest, expected[length + 3 :]))
    other = BatchLoader(group_of(tmp_path, 2, **values), num_processes=2)
    assert len(other.load_state_dict(state)) == 2


def test_epochs_differ_and_every_picture_comes_as_often_as_asked(tmp_path: Path, dogs: Path) -> None:
    loader = BatchLoader(group_of(tmp_path, train_batch_size=2))
    orders = []
    for epoch in (1, 2, 3):
        paths = [path for batch in loader.epoch(epoch) for path in batch.paths]
        assert {path: paths.count(path) for path in paths} == {str(dogs / f"im{n:02d}.png"): 2 for n in range(5)}
        orders.append(tuple(paths))
    assert len(set(orders)) == 3
    with pytest.raises(ValueError, match="count from 1"):
        next(loader.epoch(0))


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_get_different_batches_of_the_same_epoch(tmp_path: Path, dogs: Path, processes: int) -> None:
    group = group_of(tmp_path, **LIVELY)
    alone = {batch.index: batch for batch in BatchLoader(group).epoch(2)}
    loaders = [BatchLoader(group, process_index=i, num_processes=processes) for i in range(processes)]
    shares = [list(loader.epoch(2)) for loader in loaders]
    assert {len(share) for share in shares} == {len(loaders[0])}
    assert {batch.index for share in shares for batch in share} == set(alone)
    assert all(same(batch, alone[batch.index]) for share in shares for batch in share)
    with pytest.raises(ValueError, match="process 2 of 2"):
        BatchLoader(group, process_index=2, num_processes=2)


def test_caption_options_over_epochs_and_steps(tmp_path: Path, folder: Folder) -> None:
    folder("4_a", [(64, 64)], ["a, b, c, d, e"])
    dropped = BatchLoader(group_of(tmp_path, caption_dropout_every_n_epochs=2))
    assert [{c for b in dropped.epoch(e) for c in b.captions} for e in (1, 2, 3)] == [
        {"a, b, c, d, e"},
        {""},
        {"a, b, c, d, e"},
    ]
    warm = BatchLoader(group_of(tmp_path, token_warmup_step=0.5), max_train_steps=8)
    assert [b.captions[0] for b in warm.epoch(1)] == ["a", "a, b", "a, b, c", "a, b, c, d"]
    slow = BatchLoader(group_of(tmp_path, token_warmup_step=4), accumulation=2)
    assert [b.captions[0] for b in slow.epoch(1, global_step=1)] == ["a, b", "a, b", "a, b, c", "a, b, c"]


def test_latents_in_memory_need_no_workers(tmp_path: Path, dogs: Path) -> None:
    group = group_of(tmp_path)
    group.cache_latents(lambda pixels: torch.nn.functional.avg_pool2d(pixels, 8)[:, [0, 1, 2, 0]])
    loader = BatchLoader(group, workers=2, persistent=True)
    assert loader.workers == 0
    assert sum(len(batch) for batch in loader.epoch(1)) == 10


def test_latents_from_disk_through_workers(tmp_path: Path, dogs: Path) -> None:
    group = group_of(tmp_path, flip_aug=True)
    group.cache_latents(lambda pixels: torch.nn.functional.avg_pool2d(pixels, 8)[:, [0, 1, 2, 0]], to_disk=True)
    ours, theirs = list(BatchLoader(group).epoch(1)), list(BatchLoader(group, workers=2).epoch(1))
    assert all(same(a, b) for a, b in zip(ours, theirs))


def test_a_broken_picture_in_a_worker_is_named(tmp_path: Path, dogs: Path) -> None:
    group = group_of(tmp_path)
    (dogs / "im03.png").write_bytes((dogs / "im03.png").read_bytes()[:200])
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"im03\.png"):
            list(BatchLoader(group, workers=workers).epoch(1))


def test_several_data_sets_with_their_own_multiplier(tmp_path: Path, dogs: Path) -> None:
    path = tmp_path / "data.toml"
    path.write_text(
        f"[[datasets]]\nnetwork_multiplier = 0.5\n[[datasets.subsets]]\nimage_dir = '{dogs}'\n"
        f"[[datasets]]\nresolution = 32\nnetwork_multiplier = -1\nbatch_size = 2\n[[datasets.subsets]]\n"
        f"image_dir = '{dogs}'\ncustom_attributes = {{ diff_output_preservation = true }}\n",
        encoding="utf-8",
    )
    batches = list(BatchLoader(group_of(tmp_path, dataset_config=path, enable_bucket=False)).epoch(1))
    seen = {(tuple(b.target_sizes[0].tolist()), b.network_multipliers[0].item(), len(b)) for b in batches}
    assert seen == {((64, 64), 0.5, 1), ((32, 32), -1.0, 2), ((32, 32), -1.0, 1)}
    assert {str(b.attributes[0]) for b in batches if b.target_sizes[0, 0] == 32} == {
        "{'diff_output_preservation': True}"
    }


def test_validation_comes_in_fixed_order_and_looks_the_same(tmp_path: Path, folder: Folder) -> None:
    folder("3_a", [(64, 64)] * 8, ["a, b"] * 8)
    made = blueprint(train_data_dir=tmp_path / "train", validation_split=0.5, **LIVELY)
    _, validation = build(made, 1)
    assert validation is not None
    loader = BatchLoader(validation)
    first, second = list(loader.epoch(1)), list(loader.epoch(5))
    assert all(same(a, b) for a, b in zip(first, second))
    assert {c for b in first for c in b.captions} == {"a, b"}
    assert sum(len(b) for b in first) == 4


def half_mask(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new("RGB", size, (0, 255, 255))
    mask.paste((255, 0, 0), (size[0] // 2, 0, size[0], size[1]))
    mask.save(path)


@pytest.mark.parametrize("cached", [False, True])
def test_mask_pictures_follow_crop_and_mirror(tmp_path: Path, folder: Folder, cached: bool) -> None:
    folder("16_a", [(128, 64)])
    half_mask(tmp_path / "masks" / "im00.png", (256, 128))
    group = group_of(tmp_path, conditioning_data_dir=tmp_path / "masks", enable_bucket=False, flip_aug=True)
    if cached:
        group.cache_latents(lambda pixels: torch.nn.functional.avg_pool2d(pixels, 8)[:, [0, 1, 2, 0]])
    seen = set()
    for batch in BatchLoader(group).epoch(1):
        assert batch.masks is not None
        assert batch.conditioning_images is None
        assert batch.masks.shape == (1, 64, 64)
        left, right = (1.0, 0.0) if batch.flipped[0] else (0.0, 1.0)
        assert (batch.masks[0, :, :31].unique().tolist(), batch.masks[0, :, 33:].unique().tolist()) == ([left], [right])
        seen.add(batch.flipped[0])
    assert seen == {True, False}


def test_pictures_without_a_mask_are_learned_everywhere(tmp_path: Path, dogs: Path, folder: Folder) -> None:
    other = folder("1_cat", [(64, 64)], root="cats")
    Image.new("RGBA", (64, 64), (9, 9, 9, 51)).save(other / "im00.png")
    path = tmp_path / "data.toml"
    path.write_text(
        f"[[datasets]]\nbatch_size = 3\n[[datasets.subsets]]\nimage_dir = '{dogs}'\n"
        f"[[datasets.subsets]]\nimage_dir = '{other}'\nalpha_mask = true\n",
        encoding="utf-8",
    )
    group = group_of(tmp_path, dataset_config=path, enable_bucket=False)
    for batch in BatchLoader(group).epoch(1):
        assert batch.masks is not None
        for path_, mask in zip(batch.paths, batch.masks):
            assert mask.mean().item() == pytest.approx(0.2 if "cat" in path_ else 1.0)


def test_random_crop_without_buckets_keeps_the_pictures_scale(tmp_path: Path, folder: Folder) -> None:
    place = folder("1_a", [(150, 90)])
    group = group_of(tmp_path, enable_bucket=False, random_crop=True)
    pixels = load_picture(place / "im00.png").pixels
    places = set()
    for epoch in range(1, 9):
        images = make_batch(group, 0, epoch).images
        assert images is not None
        crop = ((images[0].permute(1, 2, 0) + 1) * 127.5).round().numpy().astype(np.uint8)
        found = [
            (left, top)
            for top in range(90 - 63)
            for left in range(150 - 63)
            if np.array_equal(pixels[top : top + 64, left : left + 64], crop)
        ]
        assert found
        places.add(found[0])
    assert len(places) > 3


def test_faces_are_kept_in_the_crop(tmp_path: Path) -> None:
    place = tmp_path / "train" / "1_a"
    place.mkdir(parents=True)
    picture = Image.new("RGB", (400, 200), (0, 0, 0))
    picture.paste((255, 0, 0), (300, 80, 340, 120))
    picture.save(place / "face_320_100_40_40.png")
    group = group_of(tmp_path, enable_bucket=False, face_crop_aug_range="1.5,2.5")
    for epoch in range(1, 6):
        images = make_batch(group, 0, epoch).images
        assert images is not None
        assert images[0, 0, 32, 32] > 0.9
        assert 0.1 < (images[0, 0] > 0).float().mean() < 0.5


def test_looking_at_batches(tmp_path: Path, dogs: Path) -> None:
    loader = BatchLoader(group_of(tmp_path, alpha_mask=True, train_batch_size=2))
    results = list(inspect_batches(loader, tmp_path / "seen", epochs=2, most=2))
    assert len(results) == 4
    text, files = results[0]
    assert text.startswith(f"epoch 1, batch 1 of {len(loader)}")
    assert "caption 'a, b, c, d, e'" in text
    for _, files in results:
        assert files
        for path in files:
            with Image.open(path) as picture:
                assert max(picture.size) <= 128
    assert any(path.name.endswith("-mask.png") for _, files in results for path in files)


class Colours:
    """A data set class of somebody else: one-coloured pictures."""

    def __init__(self, resolution: tuple[int, int], batch_size: int) -> None:
        self.shape = (batch_size, 3, resolution[1], resolution[0])

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index > 2:
            raise IndexError(index)
        return {"images": torch.full(self.shape, index / 3), "captions": [f"grey {index}"] * self.shape[0]}


class Nothing:
    """Gives batches without pictures."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"captions": ["a"]}


def test_a_class_of_somebody_else_supplies_the_batches() -> None:
    name = f"{__name__}.Colours"
    values = {"dataset_class": name, "resolution": "64,32", "train_batch_size": 2}
    group, validation = build(blueprint(allow_plugins=True, **values), 1)
    assert validation is None
    loader = BatchLoader(group)
    batches = list(loader.epoch(1))
    assert sorted(batch.captions[0] for batch in batches) == ["grey 0", "grey 1", "grey 2"]
    assert batches[0].target_sizes.tolist() == [[32, 64]] * 2
    assert batches[0].loss_weights.tolist() == [1.0, 1.0]
    assert (group.facts(), group.batch_size, group.repeated_images) == ([], 2, 6)
    with pytest.raises(UserError, match="allow_plugins"):
        build(blueprint(**values), 1)
    with pytest.raises(UserError, match="cannot load"):
        build(blueprint(allow_plugins=True, dataset_class="no.such.Thing"), 1)
    empty, _ = build(blueprint(allow_plugins=True, dataset_class=f"{__name__}.Nothing"), 1)
    with pytest.raises(UserError, match="neither images nor latents"):
        list(BatchLoader(empty).epoch(1))


def test_data_sets_travel_to_processes_that_start_afresh(tmp_path: Path, dogs: Path) -> None:
    group = group_of(tmp_path, **LIVELY)
    assert len(ForkingPickler.dumps(group)) > 0
    twin = copy.deepcopy(group)
    assert all(same(make_batch(group, i, 2), make_batch(twin, i, 2)) for i in range(len(group)))
