"""Latents in memory and on disk: names, keys, freshness, damage, sharing."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_kit import blueprint, save_photo
from PIL import Image
from torch import Tensor

from sd_scripts.data.batch import make_batch
from sd_scripts.data.dataset import DatasetGroup, build
from sd_scripts.schema.errors import DataError, UserError

Folder = Callable[..., Path]


class Encoder:
    """A small convolution in the place of a VAE, that counts the pictures it is given and can sample."""

    def __init__(self, noise: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(4, 3, 8, 8, generator=generator) / 8
        self.noise = noise
        self.pictures = 0
        self.sizes: list[int] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        assert pixels.min() >= -1
        assert pixels.max() <= 1
        self.pictures += len(pixels)
        self.sizes.append(len(pixels))
        latents = torch.nn.functional.conv2d(pixels, self.weight, stride=8)
        return latents + self.noise * torch.randn(latents.shape)


def group_of(tmp_path: Path, seed: int = 1, **values: Any) -> DatasetGroup:
    values = {"train_data_dir": tmp_path / "train", "enable_bucket": True, "bucket_reso_steps": 16} | values
    return build(blueprint(**values), seed)[0]


def latents_of(group: DatasetGroup, epoch: int = 1) -> dict[str, Tensor]:
    found = {}
    for index in range(len(group)):
        batch = make_batch(group, index, epoch)
        assert batch.images is None
        assert batch.latents is not None
        for path, latent in zip(batch.paths, batch.latents):
            found[os.path.basename(path)] = latent
    return found


@pytest.fixture
def pictures(folder: Folder) -> Path:
    return folder("2_dog", [(64, 64), (96, 64), (64, 96), (80, 80), (130, 70)])


def test_in_memory_equals_encoding_the_batch(tmp_path: Path, pictures: Path) -> None:
    plain, cached = group_of(tmp_path), group_of(tmp_path)
    encoder = Encoder()
    seen: list[tuple[int, int]] = []
    made = cached.cache_latents(encoder, batch_size=2, progress=lambda done, of: seen.append((done, of)))
    assert made == encoder.pictures == 5
    assert max(encoder.sizes) == 2
    assert seen[0] == (0, 5)
    assert seen[-1] == (5, 5)
    assert cached.latents_in_memory
    assert not list(pictures.glob("*.npz"))
    for index in range(len(plain)):
        direct, stored = make_batch(plain, index, 3), make_batch(cached, index, 3)
        assert direct.images is not None
        assert stored.latents is not None
        assert torch.allclose(encoder(direct.images), stored.latents, atol=1e-5)
        assert direct.paths == stored.paths
        assert torch.equal(direct.crop_top_lefts, stored.crop_top_lefts)
        assert torch.equal(direct.original_sizes, stored.original_sizes)


def test_on_disk_with_the_known_names_and_keys(tmp_path: Path, pictures: Path) -> None:
    group = group_of(tmp_path, flip_aug=True)
    encoder = Encoder()
    assert group.cache_latents(encoder, to_disk=True, batch_size=3) == 5
    assert not group.latents_in_memory
    file = pictures / "im04_0130x0070_sd.npz"
    with np.load(file, allow_pickle=False) as arrays:
        assert {"latents", "latents_flipped", "original_size", "crop_ltrb"} <= set(arrays.files)
        assert arrays["latents"].dtype == np.float32
        assert arrays["latents"].shape == (4, 6, 10)
        assert arrays["original_size"].tolist() == [130, 70]
        assert arrays["original_size"].dtype == np.int64
        assert arrays["crop_ltrb"].dtype == np.float64
        assert arrays["crop_ltrb"].shape == (4,)
    assert sorted(path.suffix for path in pictures.iterdir()) == [".npz"] * 5 + [".png"] * 5
    again = Encoder()
    assert group_of(tmp_path, flip_aug=True).cache_latents(again, to_disk=True) == 0
    assert again.pictures == 0
    memory = group_of(tmp_path, flip_aug=True)
    memory.cache_latents(Encoder())
    for epoch in (1, 2):
        disk_latents, memory_latents = latents_of(group, epoch), latents_of(memory, epoch)
        assert all(torch.equal(disk_latents[name], memory_latents[name]) for name in memory_latents)


def test_mirrored_latents_are_those_of_the_mirrored_picture(tmp_path: Path, pictures: Path) -> None:
    plain, cached = group_of(tmp_path, flip_aug=True), group_of(tmp_path, flip_aug=True)
    encoder = Encoder()
    cached.cache_latents(encoder)
    flips = set()
    for epoch in range(1, 5):
        for index in range(len(plain)):
            direct, stored = make_batch(plain, index, epoch), make_batch(cached, index, epoch)
            assert direct.images is not None
            assert stored.latents is not None
            assert direct.flipped == stored.flipped
            assert torch.allclose(encoder(direct.images), stored.latents, atol=1e-5)
            flips.update(stored.flipped)
    assert flips == {True, False}


def older_cache(path: Path, size: tuple[int, int], cells: tuple[int, int], value: float, **more: Any) -> None:
    """A file as sd-scripts v0.8.4 writes it."""
    np.savez(
        path,
        latents=np.full((4, *cells), value, np.float32),
        original_size=np.array(size),
        crop_ltrb=np.array([0, 2.0, 64, 62.0]),
        **more,
    )


def test_caches_of_sd_scripts_are_read(tmp_path: Path, pictures: Path) -> None:
    older_cache(pictures / "im00.npz", (64, 64), (8, 8), 0.5)
    older_cache(pictures / "im01_0096x0064_sd.npz", (96, 64), (6, 10), 0.25)
    encoder = Encoder()
    group = group_of(tmp_path)
    assert group.cache_latents(encoder, to_disk=True) == 3
    latents = latents_of(group)
    assert torch.equal(latents["im00.png"], torch.full((4, 8, 8), 0.5))
    assert torch.equal(latents["im01.png"], torch.full((4, 6, 10), 0.25))
    batch = next(b for b in (make_batch(group, i, 1) for i in range(len(group))) if "im00.png" in b.paths[0])
    assert batch.crop_top_lefts.tolist() == [[2, 0]]


def test_unfitting_caches_are_made_again(tmp_path: Path, pictures: Path) -> None:
    older_cache(pictures / "im00.npz", (64, 64), (4, 4), 0.5)  # another resolution
    older_cache(pictures / "im01.npz", (96, 64), (6, 10), float("nan"))
    older_cache(pictures / "im02.npz", (64, 96), (10, 6), 0.5)
    np.savez(pictures / "im03.npz", something=np.zeros(3))
    flips = group_of(tmp_path, flip_aug=True)  # im02 has no mirrored latents
    assert flips.cache_latents(Encoder(), to_disk=True) == 5
    assert group_of(tmp_path, flip_aug=True).cache_latents(Encoder(), to_disk=True) == 0


def test_a_changed_picture_is_encoded_again(tmp_path: Path, pictures: Path) -> None:
    group_of(tmp_path).cache_latents(Encoder(), to_disk=True)
    save_photo(pictures / "im03.png", (80, 80), 2)
    group = group_of(tmp_path)
    assert group.cache_latents(Encoder(), to_disk=True) == 1
    fresh = group_of(tmp_path)
    fresh.cache_latents(Encoder())
    assert torch.equal(latents_of(group)["im03.png"], latents_of(fresh)["im03.png"])


def test_a_picture_newer_than_a_foreign_cache_is_encoded_again(tmp_path: Path, pictures: Path) -> None:
    older_cache(pictures / "im00.npz", (64, 64), (8, 8), 0.5)
    status = os.stat(pictures / "im00.npz")
    os.utime(pictures / "im00.png", ns=(status.st_mtime_ns + 10**9, status.st_mtime_ns + 10**9))
    group = group_of(tmp_path)
    assert group.cache_latents(Encoder(), to_disk=True) == 5


def test_another_vae_or_scaling_makes_new_latents(tmp_path: Path, pictures: Path) -> None:
    group_of(tmp_path).cache_latents(Encoder(), to_disk=True, encoder_id="one")
    assert group_of(tmp_path).cache_latents(Encoder(), to_disk=True, encoder_id="one") == 0
    assert group_of(tmp_path).cache_latents(Encoder(), to_disk=True, encoder_id="two") == 5
    assert group_of(tmp_path, resize_interpolation="nearest").cache_latents(Encoder(), to_disk=True) == 5


@pytest.mark.parametrize("part", [0, 1, 40, 0.5, 0.9, -1])
def test_a_torn_file_is_rebuilt(tmp_path: Path, pictures: Path, part: float) -> None:
    group_of(tmp_path).cache_latents(Encoder(), to_disk=True)
    file = pictures / "im03_0080x0080_sd.npz"
    content = file.read_bytes()
    length = int(part * len(content)) if 0 < part < 1 else int(part)
    stamp = os.stat(file).st_mtime_ns + 10**9
    file.write_bytes(content[:length])
    os.utime(file, ns=(stamp, stamp))
    group = group_of(tmp_path)
    assert group.cache_latents(Encoder(), to_disk=True) == 1
    assert latents_of(group)["im03.png"].shape == (4, 8, 8)
    assert group_of(tmp_path).cache_latents(Encoder(), to_disk=True) == 0


def test_flipped_bits_are_noticed(tmp_path: Path, pictures: Path) -> None:
    group_of(tmp_path).cache_latents(Encoder(), to_disk=True)
    file = pictures / "im00_0064x0064_sd.npz"
    content = bytearray(file.read_bytes())
    content[300] ^= 0xFF
    file.write_bytes(content)
    assert group_of(tmp_path).cache_latents(Encoder(), to_disk=True) == 1


def test_damage_during_training_names_the_file(tmp_path: Path, pictures: Path) -> None:
    group = group_of(tmp_path)
    group.cache_latents(Encoder(), to_disk=True)
    (pictures / "im00_0064x0064_sd.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="im00_0064x0064_sd"):
        latents_of(group)


def test_nan_is_refused_with_the_picture_and_nothing_written(tmp_path: Path, pictures: Path) -> None:
    def broken(pixels: Tensor) -> Tensor:
        return torch.full((len(pixels), 4, pixels.shape[2] // 8, pixels.shape[3] // 8), float("nan"))

    with pytest.raises(UserError, match=r"im0\d\.png") as caught:
        group_of(tmp_path).cache_latents(broken, to_disk=True)
    assert caught.value.key == "no_half_vae"
    assert not list(pictures.glob("*.npz"))


def test_several_resolutions_share_a_file(tmp_path: Path, pictures: Path) -> None:
    path = tmp_path / "data.toml"
    text = "".join(
        f"[[datasets]]\nresolution = {size}\n[[datasets.subsets]]\nimage_dir = '{pictures}'\n" for size in (64, 128, 32)
    )
    path.write_text(text, encoding="utf-8")

    def group() -> DatasetGroup:
        return group_of(tmp_path, dataset_config=path, train_data_dir=None)

    first = group()
    assert first.cache_latents(Encoder(), to_disk=True) == 15
    assert len(list(pictures.glob("*.npz"))) == 5
    assert group().cache_latents(Encoder(), to_disk=True) == 0
    memory = group()
    memory.cache_latents(Encoder())
    for index in range(len(first)):
        one, other = make_batch(first, index, 1).latents, make_batch(memory, index, 1).latents
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_same_stem_two_pictures(tmp_path: Path, folder: Folder) -> None:
    place = folder("1_a", [(64, 64)])
    save_photo(place / "im00.jpg", (64, 64), 1)
    group = group_of(tmp_path)
    assert group.cache_latents(Encoder(), to_disk=True) == 2
    again = group_of(tmp_path)
    assert again.cache_latents(Encoder(), to_disk=True) == 0
    latents = latents_of(again)
    assert not torch.equal(latents["im00.png"], latents["im00.jpg"])


def test_what_another_machine_wrote_out_of_sight_is_made_here(tmp_path: Path, pictures: Path) -> None:
    encoder, group, waited = Encoder(), group_of(tmp_path), []
    group.cache_latents(
        encoder,
        to_disk=True,
        process_index=1,
        num_processes=2,
        wait=lambda: waited.append(encoder.pictures),
        on_machine=(0, 1),
    )
    assert encoder.pictures == 5 and waited == [2, 5]
    assert len(latents_of(group)) == 5


def test_processes_share_the_work(tmp_path: Path, pictures: Path) -> None:
    encoders = [Encoder(), Encoder()]
    groups = [group_of(tmp_path), group_of(tmp_path)]

    def second() -> None:
        groups[1].cache_latents(encoders[1], to_disk=True, process_index=1, num_processes=2)

    groups[0].cache_latents(encoders[0], to_disk=True, process_index=0, num_processes=2, wait=second)
    assert sorted(encoder.pictures for encoder in encoders) == [2, 3]
    first, other = latents_of(groups[0]), latents_of(groups[1])
    assert len(first) == 5
    assert all(torch.equal(first[name], other[name]) for name in first)


def test_what_one_process_trusts_the_other_trusts_too(tmp_path: Path, pictures: Path) -> None:
    group_of(tmp_path).cache_latents(Encoder(), to_disk=True)
    for number, picture in enumerate(sorted(pictures.glob("*.png"))):
        os.utime(picture, (2e9 + number, 2e9 + number))
    for index in range(2):
        group = group_of(tmp_path, skip_cache_check=True)
        assert group.cache_latents(Encoder(), to_disk=True, process_index=index, num_processes=2) == 0
        assert len(latents_of(group)) == 5


def test_a_missing_share_is_noticed(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(DataError, match="should be in"):
        group_of(tmp_path).cache_latents(Encoder(), to_disk=True, process_index=0, num_processes=2)


def test_sampling_neither_depends_on_nor_moves_the_global_generator(tmp_path: Path, pictures: Path) -> None:
    results = []
    for start in (5, 6):
        torch.manual_seed(start)
        before = torch.random.get_rng_state()
        group = group_of(tmp_path)
        group.cache_latents(Encoder(noise=0.1))
        assert torch.equal(before, torch.random.get_rng_state())
        results.append(latents_of(group))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    half = group_of(tmp_path)
    half.cache_latents(Encoder(noise=0.1), to_disk=True)
    (pictures / "im03_0080x0080_sd.npz").unlink()
    rest = group_of(tmp_path)
    assert rest.cache_latents(Encoder(noise=0.1), to_disk=True) == 1
    assert all(torch.equal(results[0][name], value) for name, value in latents_of(rest).items())


def test_alpha_masks_are_cached(tmp_path: Path, folder: Folder) -> None:
    place = folder("1_a", [(64, 64)])
    picture = Image.open(place / "im00.png").convert("RGBA")
    alpha = np.zeros((64, 64), np.uint8)
    alpha[:, 32:] = 255
    picture.putalpha(Image.fromarray(alpha))
    picture.save(place / "im00.png")
    for to_disk in (False, True):
        group = group_of(tmp_path, alpha_mask=True)
        group.cache_latents(Encoder(), to_disk=to_disk)
        masks = make_batch(group, 0, 1).masks
        assert masks is not None
        assert masks.shape == (1, 64, 64)
        assert masks[0, 5, 10] == 0
        assert masks[0, 5, 50] == 1
    with np.load(place / "im00_0064x0064_sd.npz") as arrays:
        assert arrays["alpha_mask"].dtype == np.float32
        assert arrays["alpha_mask"].shape == (64, 64)
    assert group_of(tmp_path).cache_latents(Encoder(), to_disk=True) == 0
    assert group_of(tmp_path, alpha_mask=True, flip_aug=True).cache_latents(Encoder(), to_disk=True) == 1


def test_trusted_files_are_not_opened(tmp_path: Path, pictures: Path) -> None:
    for path in pictures.glob("*.png"):
        path.with_suffix(".npz").write_bytes(b"torn")
    assert group_of(tmp_path, skip_cache_check=True).cache_latents(Encoder(), to_disk=True) == 0


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path, pictures: Path) -> None:
    blocked = pictures / "im00_0064x0064_sd.npz"
    blocked.mkdir()
    (blocked / "in the way").write_text("x")
    with pytest.raises(UserError, match="cannot write the cache file"):
        group_of(tmp_path).cache_latents(Encoder(), to_disk=True)
    assert not list(pictures.glob(".*tmp"))
