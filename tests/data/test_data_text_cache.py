"""Text encoder outputs in memory and on disk, and what is put into captions."""

import copy
import json
import os
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_kit import blueprint
from torch import Tensor

from sd_scripts.data.batch import make_batch
from sd_scripts.data.dataset import DatasetGroup, build
from sd_scripts.data.foreign import as_batch
from sd_scripts.data.loader import BatchLoader
from sd_scripts.schema.errors import DataError, UserError

Folder = Callable[..., Path]


class Encoder:
    """Outputs that follow from a caption's letters, with the shapes of SDXL's text encoders made narrow."""

    def __init__(self, factor: float = 1.0, tokens: int = 77) -> None:
        self.factor = factor
        self.tokens = tokens
        self.seen: list[str] = []
        self.sizes: list[int] = []

    def one(self, caption: str) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(sum(ord(letter) * (i + 1) for i, letter in enumerate(caption)))
        shapes = {"hidden_state1": (self.tokens, 6), "hidden_state2": (self.tokens, 10), "pool2": (10,)}
        return {name: torch.randn(*shape, generator=generator) * self.factor for name, shape in shapes.items()}

    def __call__(self, captions: list[str]) -> list[dict[str, Tensor]]:
        self.seen += captions
        self.sizes.append(len(captions))
        return [self.one(caption) for caption in captions]


def group_of(tmp_path: Path, seed: int = 1, **values: Any) -> DatasetGroup:
    values = {"train_data_dir": tmp_path / "train", "enable_bucket": False} | values
    return build(blueprint(**values), seed)[0]


def check_batches(group: DatasetGroup, encoder: Encoder) -> None:
    """Every batch has the outputs of its own captions."""
    for batch in BatchLoader(group).epoch(1):
        assert batch.text_outputs is not None
        assert set(batch.text_outputs) == {"hidden_state1", "hidden_state2", "pool2"}
        for name, values in batch.text_outputs.items():
            assert values.dtype == torch.float32
            assert torch.equal(values, torch.stack([encoder.one(caption)[name] for caption in batch.captions]))


CAPTIONS = ["a dog", "a cat", "a dog", None]


@pytest.fixture
def pictures(folder: Folder) -> Path:
    return folder("2_sks", [(64, 64)] * 4, CAPTIONS)


def test_in_memory_every_caption_is_encoded_once(tmp_path: Path, pictures: Path) -> None:
    group, encoder = group_of(tmp_path, train_batch_size=3), Encoder()
    seen: list[tuple[int, int]] = []
    assert group.cache_text_outputs(encoder, batch_size=2, progress=lambda *now: seen.append(now)) == 3
    assert sorted(encoder.seen) == ["a cat", "a dog", "sks"]
    assert encoder.sizes == [2, 1]
    assert (seen[0], seen[-1]) == ((0, 3), (3, 3))
    assert not list(pictures.glob("*.npz"))
    check_batches(group, encoder)


def test_without_a_cache_there_are_no_outputs(tmp_path: Path, pictures: Path) -> None:
    assert make_batch(group_of(tmp_path), 0, 1).text_outputs is None


def test_on_disk_with_the_known_names_and_keys(tmp_path: Path, pictures: Path) -> None:
    group, encoder = group_of(tmp_path), Encoder()
    assert group.cache_text_outputs(encoder, to_disk=True, encoder_id="x") == 3
    assert sorted(path.name for path in pictures.glob("*.npz")) == [f"im0{n}_te_outputs.npz" for n in range(4)]
    with np.load(pictures / "im01_te_outputs.npz", allow_pickle=False) as arrays:
        assert {"hidden_state1", "hidden_state2", "pool2"} <= set(arrays.files)
        for name, values in encoder.one("a cat").items():
            assert arrays[name].dtype == np.float32
            assert np.array_equal(arrays[name], values.numpy())
    check_batches(group, encoder)
    again = group_of(tmp_path)
    assert again.cache_text_outputs(Encoder(factor=2), to_disk=True, encoder_id="x") == 0
    check_batches(again, encoder)
    assert sorted(path.suffix for path in pictures.iterdir()) == [".npz"] * 4 + [".png"] * 4 + [".txt"] * 3


def test_a_changed_caption_is_encoded_again(tmp_path: Path, pictures: Path) -> None:
    group_of(tmp_path).cache_text_outputs(Encoder(), to_disk=True)
    file = pictures / "im01_te_outputs.npz"
    (pictures / "im01.txt").write_text("a red cat", encoding="utf-8")
    os.utime(pictures / "im01.txt", (1, 1))  # copied over with an old date
    group, encoder = group_of(tmp_path), Encoder()
    assert group.cache_text_outputs(encoder, to_disk=True) == 1
    assert encoder.seen == ["a red cat"]
    check_batches(group, encoder)
    assert file.is_file()


@pytest.mark.parametrize(
    "change",
    [{"encoder_id": "other"}, {"max_token_length": 150}],
)
def test_other_encoders_or_lengths_are_encoded_again(tmp_path: Path, pictures: Path, change: dict[str, Any]) -> None:
    group_of(tmp_path).cache_text_outputs(Encoder(), to_disk=True, encoder_id="one")
    values = {"encoder_id": "one"} | change
    group, encoder = group_of(tmp_path), Encoder(tokens=(change.get("max_token_length") or 75) + 2)
    assert group.cache_text_outputs(encoder, to_disk=True, **values) == 3
    check_batches(group, encoder)
    assert group_of(tmp_path).cache_text_outputs(Encoder(), to_disk=True, **values) == 0


def test_prefix_and_replacements_are_part_of_the_caption(tmp_path: Path, pictures: Path) -> None:
    group, encoder = group_of(tmp_path, caption_prefix="photo,"), Encoder()
    group.replacements = (("dog", "dog dog1"),)
    group.cache_text_outputs(encoder, to_disk=True)
    assert sorted(encoder.seen) == ["photo, a cat", "photo, a dog dog1", "photo, sks"]
    check_batches(group, encoder)
    plain = group_of(tmp_path)
    assert plain.cache_text_outputs(encoder, to_disk=True) == 3
    check_batches(plain, encoder)


def foreign_file(path: Path, outputs: dict[str, Tensor]) -> None:
    """As sd-scripts writes it: no word about its origin."""
    with open(path, "wb") as file:
        np.savez(file, **{name: values.numpy() for name, values in outputs.items()})


def test_files_of_sd_scripts_are_taken_where_they_fit(tmp_path: Path, pictures: Path) -> None:
    encoder = Encoder()
    captions = ["a dog", "a cat", "a dog", "sks"]
    for number, caption in enumerate(captions):
        foreign_file(pictures / f"im0{number}_te_outputs.npz", encoder.one(caption))
    group, probe = group_of(tmp_path), Encoder()
    assert group.cache_text_outputs(probe, to_disk=True) == 0
    assert probe.seen == ["a dog"]
    check_batches(group, encoder)
    stamp = (pictures / "im01_te_outputs.npz").stat().st_mtime_ns + 10**9
    (pictures / "im01.txt").write_text("a red cat", encoding="utf-8")
    os.utime(pictures / "im01.txt", ns=(stamp, stamp))
    group, newer = group_of(tmp_path), Encoder()
    assert group.cache_text_outputs(newer, to_disk=True) == 1
    assert newer.seen == ["a dog", "a red cat"]
    check_batches(group, encoder)
    with_prefix = group_of(tmp_path, caption_prefix="x")
    assert with_prefix.cache_text_outputs(Encoder(), to_disk=True) == 3


@pytest.mark.parametrize("other", [Encoder(factor=1.3), Encoder(tokens=152)])
def test_files_of_sd_scripts_from_other_encoders_are_made_again(tmp_path: Path, pictures: Path, other: Encoder) -> None:
    for number, caption in enumerate(["a dog", "a cat", "a dog", "sks"]):
        foreign_file(pictures / f"im0{number}_te_outputs.npz", other.one(caption))
    group, encoder = group_of(tmp_path), Encoder()
    assert group.cache_text_outputs(encoder, to_disk=True) == 3
    check_batches(group, encoder)


def test_half_precision_files_of_sd_scripts_are_close_enough(tmp_path: Path, pictures: Path) -> None:
    for number, caption in enumerate(["a dog", "a cat", "a dog", "sks"]):
        halved = {name: values.bfloat16().float() for name, values in Encoder().one(caption).items()}
        foreign_file(pictures / f"im0{number}_te_outputs.npz", halved)
    assert group_of(tmp_path).cache_text_outputs(Encoder(), to_disk=True) == 0
    foreign_file(pictures / "im01_te_outputs.npz", Encoder(tokens=152).one("a cat"))
    group, encoder = group_of(tmp_path), Encoder()
    assert group.cache_text_outputs(encoder, to_disk=True) == 1
    assert encoder.seen == ["a dog", "a cat"]


def test_torn_files_are_made_again_and_later_damage_is_named(tmp_path: Path, pictures: Path) -> None:
    group_of(tmp_path).cache_text_outputs(Encoder(), to_disk=True)
    file = pictures / "im01_te_outputs.npz"
    file.write_bytes(file.read_bytes()[:300])
    group, encoder = group_of(tmp_path), Encoder()
    assert group.cache_text_outputs(encoder, to_disk=True) == 1
    check_batches(group, encoder)
    file.write_bytes(b"")
    with pytest.raises(DataError, match=r"im01_te_outputs\.npz"):
        list(BatchLoader(group).epoch(1))


def test_two_data_sets_with_other_captions_for_one_picture(tmp_path: Path, pictures: Path) -> None:
    path = tmp_path / "data.toml"
    subset = f"[[datasets.subsets]]\nimage_dir = '{pictures}'\n"
    path.write_text(f"[[datasets]]\n{subset}[[datasets]]\nresolution = 32\n{subset}caption_prefix = 'small'\n")
    group, encoder = group_of(tmp_path, dataset_config=path), Encoder()
    assert group.cache_text_outputs(encoder, to_disk=True) == 6
    assert len(list(pictures.glob("*_te_outputs.npz"))) == 8
    check_batches(group, encoder)
    again = group_of(tmp_path, dataset_config=path)
    assert again.cache_text_outputs(Encoder(), to_disk=True) == 0
    check_batches(again, encoder)


def test_two_processes_share_the_work(tmp_path: Path, pictures: Path) -> None:
    groups, encoders = [group_of(tmp_path) for _ in range(2)], [Encoder(), Encoder()]
    waited = []

    def second() -> None:
        waited.append(len(list(pictures.glob("*.npz"))))
        groups[1].cache_text_outputs(encoders[1], to_disk=True, process_index=1, num_processes=2)

    groups[0].cache_text_outputs(encoders[0], to_disk=True, process_index=0, num_processes=2, wait=second)
    assert waited == [2]
    assert [sorted(encoder.seen) for encoder in encoders] == [["a dog"], ["a cat", "sks"]]
    for group in groups:
        check_batches(group, Encoder())


def test_what_another_machine_wrote_out_of_sight_is_made_here(tmp_path: Path, pictures: Path) -> None:
    """Also where an older file lies here: nobody on this machine had looked at it."""
    old = group_of(tmp_path)
    old.cache_text_outputs(Encoder(), to_disk=True, encoder_id="another model")
    group, encoder, waited = group_of(tmp_path), Encoder(), []
    group.cache_text_outputs(
        encoder,
        to_disk=True,
        process_index=1,
        num_processes=2,
        wait=lambda: waited.append(len(encoder.seen)),
        on_machine=(0, 1),
        encoder_id="this model",
    )
    assert sorted(encoder.seen) == ["a cat", "a dog", "sks"] and waited == [2, 3]
    check_batches(group, Encoder())


def test_a_process_that_stopped_is_noticed(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(DataError, match="another process"):
        group_of(tmp_path).cache_text_outputs(Encoder(), to_disk=True, process_index=0, num_processes=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shuffle_caption", True),
        ("caption_dropout_rate", 0.1),
        ("caption_dropout_every_n_epochs", 2),
        ("caption_tag_dropout_rate", 0.1),
        ("token_warmup_step", 10),
        ("token_warmup_step", 0.5),
        ("enable_wildcard", True),
    ],
)
@pytest.mark.parametrize("in_file", [False, True])
def test_captions_that_change_are_refused_by_name(
    tmp_path: Path, pictures: Path, name: str, value: Any, in_file: bool
) -> None:
    options: dict[str, Any] = {name: value}
    if in_file:
        text = "true" if value is True else str(value)
        (tmp_path / "data.toml").write_text(
            f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{pictures}'\n{name} = {text}\n"
        )
        options = {"dataset_config": tmp_path / "data.toml"}
    group = group_of(tmp_path, **options)
    with pytest.raises(UserError, match=f"{name} exclude each other") as caught:
        group.cache_text_outputs(Encoder())
    assert caught.value.key == name
    assert ("data.toml, datasets[0].subsets[0]" if in_file else "2_sks") in caught.value.hint


def test_drawn_templates_are_refused(tmp_path: Path, pictures: Path) -> None:
    group = group_of(tmp_path)
    group.replacements = (("", ("a {}", "b {}")),)
    with pytest.raises(UserError, match="templates"):
        group.cache_text_outputs(Encoder())


def test_nan_is_a_sentence(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(UserError, match="NaN.*'a dog'"):
        group_of(tmp_path).cache_text_outputs(Encoder(factor=float("nan")))


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path, pictures: Path) -> None:
    if os.geteuid() == 0:
        (pictures / "im00_te_outputs.npz").mkdir()  # root may write everywhere: a folder is in the way
    else:
        pictures.chmod(0o500)
    with pytest.raises(UserError, match="cannot write the cache file"):
        group_of(tmp_path).cache_text_outputs(Encoder(), to_disk=True)
    pictures.chmod(0o700)


def test_replacements_reach_the_batch(tmp_path: Path, folder: Folder) -> None:
    folder("4_tok", [(64, 64)] * 2, ["a photo of tok, tok2 x", "token"])
    group = group_of(tmp_path)
    group.replacements = (("tok", "tok tok1 tok2"),)
    found = {caption for batch in BatchLoader(group, workers=1).epoch(1) for caption in batch.captions}
    assert found == {"a photo of tok tok1 tok2, tok tok1 tok22 x", "tok tok1 tok2en"}
    group.replacements = (("", ("one of tok", "two of tok")), ("tok", "tok tok1"))
    drawn = [caption for batch in BatchLoader(group).epoch(1) for caption in batch.captions]
    assert set(drawn) == {"one of tok tok1", "two of tok tok1"}
    assert drawn == [caption for batch in BatchLoader(group).epoch(1) for caption in batch.captions]


def test_a_data_set_class_may_bring_outputs() -> None:
    images = torch.zeros(2, 3, 64, 64)
    outputs = {"pool2": torch.ones(2, 10)}
    mine = as_batch({"images": images, "captions": ["a", "b"], "text_outputs": outputs}, 0, "x")
    assert mine.text_outputs is not None
    assert torch.equal(mine.text_outputs["pool2"], outputs["pool2"])
    lists = {
        "text_encoder_outputs1_list": torch.ones(2, 77, 6),
        "text_encoder_outputs2_list": torch.ones(2, 77, 10),
        "text_encoder_pool2_list": torch.ones(2, 10),
    }
    theirs = as_batch({"images": images, "captions": ["a", "b"]} | lists, 0, "x")
    assert theirs.text_outputs is not None
    assert {name: tuple(v.shape) for name, v in theirs.text_outputs.items()} == {
        "hidden_state1": (2, 77, 6),
        "hidden_state2": (2, 77, 10),
        "pool2": (2, 10),
    }
    assert as_batch({"images": images, "captions": ["a", "b"]}, 0, "x").text_outputs is None


class Greys:
    """A data set class of somebody else, with or without outputs of the text encoders."""

    def __init__(self, with_outputs: bool) -> None:
        self.more = {"text_outputs": {"pool2": torch.ones(1, 10)}} if with_outputs else {}

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"images": torch.zeros(1, 3, 64, 64), "captions": ["a tok"]} | self.more


class GreysWithOutputs(Greys):
    def __init__(self) -> None:
        super().__init__(True)


class GreysWithout(Greys):
    def __init__(self) -> None:
        super().__init__(False)


def test_a_data_set_class_with_a_cache_and_replacements() -> None:
    group = build(blueprint(dataset_class=f"{__name__}.GreysWithOutputs", allow_plugins=True), 1)[0]
    group.replacements = (("tok", "tok tok1"),)
    assert group.cache_text_outputs(Encoder()) == 0
    batch = make_batch(group, 0, 1)
    assert batch.captions == ["a tok tok1"]
    assert batch.text_outputs is not None
    poor = build(blueprint(dataset_class=f"{__name__}.GreysWithout", allow_plugins=True), 1)[0]
    with pytest.raises(UserError, match="bring no text encoder outputs") as caught:
        poor.cache_text_outputs(Encoder())
    assert caught.value.key == "cache_text_encoder_outputs"


def test_a_cache_travels_to_processes_that_start_afresh(tmp_path: Path, pictures: Path) -> None:
    for to_disk in (False, True):
        group, encoder = group_of(tmp_path), Encoder()
        group.cache_text_outputs(encoder, to_disk=to_disk)
        assert len(ForkingPickler.dumps(group)) > 0
        check_batches(copy.deepcopy(group), encoder)
        loader = BatchLoader(group, workers=2)
        assert loader.workers == 2
        ours, theirs = list(BatchLoader(group).epoch(1)), list(loader.epoch(1))
        for one, other in zip(ours, theirs, strict=True):
            assert one.captions == other.captions
            assert one.text_outputs is not None
            assert other.text_outputs is not None
            assert all(torch.equal(values, other.text_outputs[name]) for name, values in one.text_outputs.items())


def test_no_workers_where_everything_is_in_memory(tmp_path: Path, pictures: Path) -> None:
    group = group_of(tmp_path)
    group.cache_latents(lambda pixels: torch.nn.functional.avg_pool2d(pixels, 8)[:, [0, 1, 2, 0]])
    assert group.latents_in_memory
    group.cache_text_outputs(Encoder())
    assert BatchLoader(group, workers=2).workers == 0
    group.cache_text_outputs(Encoder(), to_disk=True)
    assert BatchLoader(group, workers=2).workers == 2


def test_captions_of_a_metadata_file(tmp_path: Path, pictures: Path) -> None:
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({f"im0{n}": {"caption": f"c{n}", "tags": "x"} for n in range(4)}))
    os.utime(meta, (1, 1))
    encoder = Encoder()
    for number in range(4):
        foreign_file(pictures / f"im0{number}_te_outputs.npz", encoder.one(f"c{number}, x"))
    values = {"train_data_dir": pictures, "in_json": meta}
    group = group_of(tmp_path, **values)
    assert group.cache_text_outputs(Encoder(), to_disk=True) == 0
    check_batches(group, encoder)
    os.utime(meta, (4e9, 4e9))  # the metadata was written anew since
    group = group_of(tmp_path, **values)
    assert group.cache_text_outputs(encoder, to_disk=True) == 4
    check_batches(group, encoder)


def test_pictures_set_aside_have_a_cache_of_their_own(tmp_path: Path, pictures: Path) -> None:
    made = blueprint(train_data_dir=tmp_path / "train", validation_split=0.5, shuffle_caption=False)
    for group in build(made, 1):
        assert group is not None
        encoder = Encoder()
        group.cache_text_outputs(encoder, to_disk=True)
        check_batches(group, encoder)
    assert len(list(pictures.glob("*_te_outputs.npz"))) == 4
