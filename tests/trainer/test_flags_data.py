"""Every flag about pictures and captions changes what the trainer sees."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from effects import Probe, shows
from PIL import Image


@pytest.fixture
def pictures(thumbs: Path, tmp_path: Path) -> Path:
    """A copy of the small photographs that a test may change: `<tmp>/data/2_photo`."""
    shutil.copytree(thumbs, tmp_path / "data")
    return tmp_path / "data"


def captioned(folder: Path, text: str) -> Path:
    """All pictures of the training folder with this caption."""
    for file in (folder / "2_photo").glob("*.txt"):
        file.write_text(text, encoding="utf-8")
    return folder


@shows("train_data_dir", "debug_dataset", "console_log_file")
def test_looking_shows_all_pictures_and_trains_nothing(probe: Probe) -> None:
    look = probe.look()
    names = {line.split(".png")[0].rsplit("/", 1)[1] for line in look.lines}
    assert names == {"astronaut", "coffee", "chelsea", "rocket"}
    assert len(look.pictures) == 8
    assert look.finished.of("end")[0]["status"] == "done"
    assert not look.finished.of("start") and not look.finished.of("save")


@shows("caption_extension", "caption_extention")
def test_captions_are_found_by_their_ending(probe: Probe, pictures: Path) -> None:
    for file in (pictures / "2_photo").glob("*.txt"):
        file.with_suffix(".cap").write_text("other", encoding="utf-8")
    assert "other" not in probe.look(data=pictures).captions
    assert set(probe.look(data=pictures, caption_extension=".cap").captions) == {"other"}
    assert set(probe.look(data=pictures, caption_extention=".cap").captions) == {"other"}


TAGS = "one, two, three, four, five, six"
# flag -> (its value, what else must be on, the caption in the files, what some picture's caption must become)
CAPTIONS: dict[str, tuple[Any, dict[str, Any], str, Any]] = {
    "shuffle_caption": (True, {}, TAGS, lambda text: text != TAGS and sorted(text) == sorted(TAGS)),
    "caption_separator": (
        ";",
        {"shuffle_caption": True},
        "a, b; c; d; e",
        lambda text: "a, b" in text and text != "a, b, c, d, e",
    ),
    "keep_tokens": (5, {"shuffle_caption": True}, TAGS, lambda text: text == TAGS),
    "keep_tokens_separator": ("|||", {"shuffle_caption": True}, f"first ||| {TAGS}", lambda text: "first, " in text),
    "secondary_separator": (";;;", {}, "a;;;b, c", lambda text: text == "a,b, c"),
    "enable_wildcard": (True, {}, "{red|blue} thing", lambda text: text in ("red thing", "blue thing")),
    "caption_prefix": ("zzz", {}, "thing", lambda text: text.startswith("zzz") and text.endswith("thing")),
    "caption_suffix": ("zzz", {}, "thing", lambda text: text.startswith("thing") and text.endswith("zzz")),
    "caption_dropout_rate": (1.0, {}, "thing", lambda text: text == ""),
    "caption_tag_dropout_rate": (1.0, {"keep_tokens": 1}, TAGS, lambda text: text == "one"),
    "token_warmup_step": (1000, {}, TAGS, lambda text: len(text.split(",")) < 6),
    "token_warmup_min": (3, {"token_warmup_step": 1000}, TAGS, lambda text: len(text.split(",")) == 3),
}


@shows(*CAPTIONS)
@pytest.mark.parametrize("flag", CAPTIONS)
def test_changes_the_captions(probe: Probe, pictures: Path, flag: str) -> None:
    value, needed, text, expected = CAPTIONS[flag]
    captioned(pictures, text)
    before = probe.look(data=pictures, **needed).captions
    after = probe.look(data=pictures, **needed, **{flag: value}).captions
    assert before != after
    assert any(expected(caption) for caption in after), after


@shows("caption_dropout_every_n_epochs")
def test_every_second_epoch_has_no_captions(probe: Probe, pictures: Path) -> None:
    captioned(pictures, "thing")
    captions = probe.look(data=pictures, max_train_epochs=2, caption_dropout_every_n_epochs=2).captions
    assert captions == ["thing"] * 8 + [""] * 8


def test_captions_reach_the_text_encoder(probe: Probe, pictures: Path) -> None:
    captioned(pictures, TAGS)
    plain = probe.trained(data=pictures)
    assert probe.trained(data=pictures, caption_prefix="something else entirely").losses != plain.losses


# The pictures have 96x80 pixels. flag -> (its value, what else is given, the sizes that pictures are then cut to)
SIZES: dict[str, tuple[Any, dict[str, Any], set[str]]] = {
    "resolution": ("128", {"enable_bucket": None, "min_bucket_reso": None}, {"128x128"}),
    "enable_bucket": (True, {"bucket_reso_steps": 8, "resolution": "128"}, {"136x120"}),
    "min_bucket_reso": (128, {"bucket_reso_steps": 8, "resolution": "128"}, {"128x128"}),
    "max_bucket_reso": (128, {"bucket_reso_steps": 8, "resolution": "128"}, {"128x104"}),
    "bucket_reso_steps": (16, {"resolution": "128"}, {"144x112"}),
    "bucket_no_upscale": (True, {"bucket_reso_steps": 8, "resolution": "128"}, {"96x80"}),
}


@shows(*SIZES)
@pytest.mark.parametrize("flag", SIZES)
def test_changes_the_sizes(probe: Probe, flag: str) -> None:
    value, needed, expected = SIZES[flag]
    before = set(probe.look(**{**needed, **({flag: None} if flag == "enable_bucket" else {})}).sizes)
    after = set(probe.look(**{**needed, flag: value}).sizes)
    assert after == expected
    assert before != after


@shows("train_batch_size")
def test_batches_hold_as_many_pictures_as_asked(probe: Probe) -> None:
    assert probe.trained(train_batch_size=4, max_train_epochs=1).of("start")[0]["total_steps"] == 2
    assert probe.base(max_train_epochs=1).of("start")[0]["total_steps"] == 8


PIXELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "resize_interpolation": ("nearest", {}),
    "flip_aug": (True, {}),
    "color_aug": (True, {}),
    "random_crop": (True, {"enable_bucket": None}),
}


@shows(*PIXELS)
@pytest.mark.parametrize("flag", PIXELS)
def test_changes_the_pixels(probe: Probe, flag: str) -> None:
    value, needed = PIXELS[flag]
    before, after = probe.look(**needed).pixels(), probe.look(**needed, **{flag: value}).pixels()
    assert any(not np.array_equal(one, two) for one, two in zip(before, after))
    if flag == "flip_aug":
        assert all(np.array_equal(one, two) or np.array_equal(one[:, ::-1], two) for one, two in zip(before, after))


@shows("face_crop_aug_range")
def test_pictures_are_cut_around_faces(probe: Probe, pictures: Path) -> None:
    for file in (pictures / "2_photo").iterdir():
        file.rename(file.with_name(f"{file.stem}_0024_0024_0020_0020{file.suffix}"))
    options = {"enable_bucket": None, "min_bucket_reso": None, "resolution": "48"}
    before = probe.look(data=pictures, **options).pixels()
    after = probe.look(data=pictures, **options, face_crop_aug_range="1.5,2.0").pixels()
    assert any(not np.array_equal(one, two) for one, two in zip(before, after))


@shows("in_json", "dataset_repeats")
def test_a_metadata_file_gives_captions_and_repeats(probe: Probe, pictures: Path) -> None:
    names = sorted(str(path) for path in (pictures / "2_photo").glob("*.png"))
    file = pictures / "meta data.json"
    file.write_text(json.dumps({name: {"caption": "from the file"} for name in names}), encoding="utf-8")
    look = probe.look(data=pictures / "2_photo", in_json=file, dataset_repeats=3)
    assert look.captions == ["from the file"] * 12


@shows("dataset_config")
def test_a_description_file_takes_the_place_of_the_folders(probe: Probe, pictures: Path) -> None:
    file = pictures / "data.toml"
    folder = json.dumps(str(pictures / "2_photo"))
    file.write_text(
        f"[[datasets]]\nresolution = 80\n[[datasets.subsets]]\nimage_dir = {folder}\nnum_repeats = 3\n"
        'class_tokens = "thing"\ncaption_extension = ".none"\n'
    )
    look = probe.look(train_data_dir=None, dataset_config=file, enable_bucket=None)
    assert look.captions == ["thing"] * 12
    assert set(look.sizes) == {"80x80"}


CLASS = """
import torch

class Pictures:
    def __init__(self, seed, resolution=None):
        self.value = seed / 100

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"captions": [f"number {index}"], "latents": torch.full((1, 4, 8, 8), self.value + index)}
"""


@shows("dataset_class", "allow_plugins")
def test_a_class_supplies_the_batches_once_allowed(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign_pictures.py").write_text(CLASS)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {"train_data_dir": None, "dataset_class": "foreign_pictures.Pictures"}
    assert probe(**options).code == 2
    assert "foreign_pictures" not in sys.modules
    run = probe.trained(**options, allow_plugins=True, max_train_epochs=1)
    assert run.of("start")[0]["total_steps"] == 2
    assert sorted(probe.look(**options, allow_plugins=True).captions) == ["number 0", "number 1"]


@shows("cache_latents", "vae_batch_size")
def test_pictures_are_encoded_once_and_together(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    encode = AutoencoderKL.encode

    def counted(self: AutoencoderKL, x: torch.Tensor, *args: Any, **extra: Any) -> Any:
        sizes.append(len(x))
        return encode(self, x, *args, **extra)

    monkeypatch.setattr(AutoencoderKL, "encode", counted)
    probe.trained(max_train_steps=9)
    assert sizes == [1] * 4
    sizes.clear()
    probe.trained(vae_batch_size=3)
    assert sizes == [3, 1]
    sizes.clear()
    probe.trained(cache_latents=None, max_train_steps=3)
    assert sizes == [1] * 3


@shows("cache_latents_to_disk", "skip_cache_check")
def test_latents_on_disk_are_read_back_and_checked_unless_told(probe: Probe, pictures: Path) -> None:
    first = probe.trained(data=pictures, cache_latents_to_disk=True)
    files = sorted((pictures / "2_photo").glob("*.npz"))
    assert len(files) == 4
    written = [file.stat().st_mtime_ns for file in files]
    assert probe.trained(data=pictures, cache_latents_to_disk=True).losses == first.losses
    assert [file.stat().st_mtime_ns for file in files] == written
    for file in files:
        file.write_bytes(b"torn")
    broken = probe(data=pictures, cache_latents_to_disk=True, skip_cache_check=True)
    assert broken.code == 2 and ".npz" in broken.error["message"]
    assert probe.trained(data=pictures, cache_latents_to_disk=True).losses == first.losses


@shows("cache_info")
def test_sizes_are_remembered_in_the_folder(probe: Probe, pictures: Path) -> None:
    assert not (pictures / "2_photo" / "metadata_cache.json").exists()
    probe.look(data=pictures, cache_info=True)
    assert len(json.loads((pictures / "2_photo" / "metadata_cache.json").read_text())) == 4


@shows("max_data_loader_n_workers", "persistent_data_loader_workers")
def test_loading_processes_do_the_work_and_change_nothing(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[int, bool]] = []
    make = torch.utils.data.DataLoader._get_iterator

    def counted(self: Any) -> Any:
        started.append((self.num_workers, self.persistent_workers))
        return make(self)

    monkeypatch.setattr(torch.utils.data.DataLoader, "_get_iterator", counted)
    options = {"cache_latents": None, "flip_aug": True, "shuffle_caption": True, "max_train_steps": 10}
    alone = probe.trained(**options)
    helped = probe.trained(**options, max_data_loader_n_workers=1)
    kept = probe.trained(**options, max_data_loader_n_workers=1, persistent_data_loader_workers=True)
    assert started == [(0, False)] * 2 + [(1, False)] * 2 + [(1, True)] * 1
    assert alone.losses == helped.losses == kept.losses


def test_pictures_of_all_formats_are_trained(probe: Probe, tmp_path: Path) -> None:
    folder = tmp_path / "1_shape"
    folder.mkdir()
    for ending in ("jpg", "png", "webp", "bmp", "avif"):
        Image.new("RGB", (64, 64), (200, 30, 60)).save(folder / f"file.{ending}")
        (folder / f"file.{ending}").rename(folder / f"{ending}.{ending}")
    assert probe.trained(data=tmp_path).of("start")[0]["images"] == 5
