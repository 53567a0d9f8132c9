"""Cache files made beforehand are those that a training takes, for both families."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from script_kit import ROOT, Run
from test_tool_flags import FLAGS

from sd_scripts.data.config import build_blueprint
from sd_scripts.data.dataset import DatasetGroup, build
from sd_scripts.events import read_events
from sd_scripts.families.base import Family
from sd_scripts.families.identity import text_identity, vae_identity
from sd_scripts.families.sd import StableDiffusion
from sd_scripts.families.sdxl import StableDiffusionXL
from sd_scripts.schema.model import ModelOptions
from sd_scripts.schema.parse import parse
from sd_scripts.tools import cache_latents, cache_text_encoder_outputs
from sd_scripts.tools.caching import parser


def flags(model: Path, folder: Path) -> list[str]:
    words = "--resolution 128 --enable_bucket --min_bucket_reso 64 --bucket_reso_steps 32 --caption_extension .txt"
    return ["--pretrained_model_name_or_path", str(model), "--train_data_dir", str(folder), *words.split()]


def group_of(argv: list[str], command: str = "sdxl_train_network") -> DatasetGroup:
    config = parse(command, argv, ("dataset",))
    return build(build_blueprint(config.dataset, config.captions, config.validation), 3)[0]


def never(*given: object) -> torch.Tensor:
    raise AssertionError("something was encoded again")


@pytest.mark.parametrize("script", ["tools/cache_latents.py", "tools/cache_text_encoder_outputs.py"])
def test_all_known_flags_are_taken(script: str) -> None:
    module = cache_latents if "latents" in script else cache_text_encoder_outputs
    actions = {action.dest: action for action in parser(module.OPTIONS, module.PROG, sdxl=True)._actions}
    plain = set(actions) | {action.dest for action in parser(module.OPTIONS, module.PROG)._actions}
    assert set(FLAGS[script]) <= plain
    config = parse("sdxl_train_network", [], ())
    for key, fact in FLAGS[script].items():
        if key in config.values():
            found = config.values()[key]
            assert found == fact.get("default", False if fact["type"] == "bool" else None) or key in CHANGED, key


CHANGED = {"keep_tokens_separator": "upstream's empty text and our none mean the same"}


@pytest.mark.parametrize("family", [StableDiffusion(), StableDiffusionXL()], ids=["sd", "sdxl"])
def test_latents_are_taken_by_a_training(
    family: Family, pictures: Path, script: Run, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue("tiny_sd1" if family.name == "sd" else "tiny_sdxl_file")
    argv = flags(model, pictures)
    done = script("tools/cache_latents.py", *argv, *(["--sdxl"] if family.name == "sdxl" else []), "--flip_aug")
    assert done.returncode == 0, done.stderr
    assert "4 pictures encoded" in done.stdout
    files = sorted(pictures.glob(f"*_{family.name}.npz"))
    assert len(files) == 4
    loaded = family.load(ModelOptions(pretrained_model_name_or_path=str(model)), torch.float32, "cpu")
    group = group_of([*argv, "--flip_aug"], "train_network" if family.name == "sd" else "sdxl_train_network")
    identity = vae_identity(loaded)
    assert group.cache_latents(never, to_disk=True, family=family.name, encoder_id=identity) == 0
    with np.load(files[0]) as arrays:
        assert {"latents", "latents_flipped", "original_size", "crop_ltrb"} <= set(arrays)


def test_only_what_is_missing_or_stale_is_encoded(
    pictures: Path, tiny_sd1: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = flags(tiny_sd1, pictures)
    assert cache_latents.main(argv) == 0
    first, second, *_ = sorted(pictures.glob("*_sd.npz"))
    first.unlink()
    second.write_bytes(b"torn")
    capsys.readouterr()
    assert cache_latents.main([*argv, "--skip_existing"]) == 0
    assert "1 pictures encoded here" in capsys.readouterr().out
    assert second.read_bytes() == b"torn"
    assert cache_latents.main(argv) == 0
    assert "1 pictures encoded here" in capsys.readouterr().out
    assert "latents" in np.load(second)


def test_captions_are_taken_by_a_training(pictures: Path, tiny_sdxl: Path, script: Run) -> None:
    argv = flags(tiny_sdxl, pictures)
    done = script("tools/cache_text_encoder_outputs.py", "--sdxl", *argv, "--max_token_length", 150)
    assert done.returncode == 0, done.stderr
    assert "4 captions encoded" in done.stdout
    files = sorted(pictures.glob("*_te_outputs.npz"))
    assert len(files) == 4
    with np.load(files[0]) as arrays:
        assert {name: array.dtype for name, array in arrays.items() if name != "source"} == dict.fromkeys(
            ("hidden_state1", "hidden_state2", "pool2"), np.dtype(np.float32)
        )
        assert arrays["hidden_state1"].shape[0] == arrays["hidden_state2"].shape[0] == 152
    family = StableDiffusionXL()
    loaded = family.load(ModelOptions(pretrained_model_name_or_path=str(tiny_sdxl)), torch.float32, "cpu")
    group = group_of(argv)
    made = group.cache_text_outputs(
        never, to_disk=True, encoder_id=text_identity(loaded), max_token_length=150, batch_size=2
    )
    assert made == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ([], "Give --sdxl"),
        (["--sdxl", "--shuffle_caption"], "shuffle_caption"),
        (["--sdxl", "--resolution", "x"], "resolution"),
        (["--sdxl", "--config_file", "none"], "none.toml"),
        (["--sdxl", "--train_data_dir", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence(
    change: list[str], words: str, pictures: Path, tiny_sdxl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cache_text_encoder_outputs.main([*flags(tiny_sdxl, pictures), *change]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not list(pictures.glob("*.npz"))


def test_the_training_s_own_file_and_flags_do(pictures: Path, tiny_sd1: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        f"pretrained_model_name_or_path = '{tiny_sd1}'\ntrain_data_dir = '{pictures}'\nresolution = '64'\n"
        "network_module = 'networks.lora'\nlearning_rate = 1e-4\noutput_dir = 'out'\nenable_bucket = true\n"
        "min_bucket_reso = 64\ncaption_extension = '.txt'\n"
    )
    assert cache_latents.main(["--config_file", str(config), "--network_dim", "8"]) == 0
    assert len(list(pictures.glob("*_sd.npz"))) == 4
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("trainer", ["sdxl_train", "sdxl_train_textual_inversion"])
def test_the_file_of_another_trainer_does_too(
    trainer: str, pictures: Path, tiny_sdxl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = "block_lr = '1e-4'\ntrain_text_encoder = true\n"
    if trainer != "sdxl_train":
        own = "token_string = 'mycat'\nnum_vectors_per_token = 2\n"
    config = tmp_path / "run.toml"
    config.write_text(own + "learning_rate = 1e-5\n")
    argv = ["--sdxl", *flags(tiny_sdxl, pictures), "--config_file", str(config)]
    assert cache_latents.main(argv) == 0
    assert len(list(pictures.glob("*_sdxl.npz"))) == 4
    capsys.readouterr()
    config.write_text("blokc_lr = '1e-4'\n")
    assert cache_latents.main(argv) == 2
    assert "blokc_lr" in capsys.readouterr().err


@pytest.mark.parametrize("script", [cache_latents, cache_text_encoder_outputs])
def test_sides_of_buckets_are_those_of_the_family(
    script: ModuleType, pictures: Path, tiny_sdxl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    description = pictures.parent / "data set.toml"
    description.write_text(
        "[[datasets]]\nresolution = 128\nenable_bucket = true\nmin_bucket_reso = 64\nbucket_reso_steps = 8\n"
        f"[[datasets.subsets]]\nimage_dir = '{pictures}'\n"
    )
    argv = ["--pretrained_model_name_or_path", str(tiny_sdxl), "--dataset_config", str(description)]
    assert script.main(["--sdxl", *argv]) == 2
    said = capsys.readouterr().err
    assert "bucket_reso_steps is 8" in said and "multiple of 32" in said and "data set.toml, datasets[0]" in said
    assert not list(pictures.glob("*.npz"))


def test_each_script_asks_only_for_what_it_keeps(
    pictures: Path, tiny_sdxl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Captions stay the same where pictures are cut at random, and pictures where captions are shuffled."""
    argv = ["--sdxl", *flags(tiny_sdxl, pictures)]
    assert cache_latents.main([*argv, "--random_crop"]) == 2
    assert "random_crop" in capsys.readouterr().err
    assert cache_text_encoder_outputs.main([*argv, "--shuffle_caption"]) == 2
    assert "shuffle_caption" in capsys.readouterr().err
    assert cache_text_encoder_outputs.main([*argv, "--random_crop"]) == 0
    assert cache_latents.main([*argv, "--shuffle_caption"]) == 0
    assert len(list(pictures.glob("*_te_outputs.npz"))) == len(list(pictures.glob("*_sdxl.npz"))) == 4


@pytest.mark.slow
def test_the_trainer_itself_encodes_nothing_again(pictures: Path, tiny_sdxl: Path, tmp_path: Path, script: Run) -> None:
    argv = ["--pretrained_model_name_or_path", str(tiny_sdxl), "--train_data_dir", str(pictures), "--resolution", "64"]
    argv += ["--caption_extension", ".txt", "--no_half_vae", "--mixed_precision", "bf16"]
    assert cache_latents.main(["--sdxl", *argv]) == 0
    assert cache_text_encoder_outputs.main(["--sdxl", *argv]) == 0
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in pictures.iterdir()}
    assert len(before) == 5 * 4
    cached = ["--cache_latents_to_disk", "--cache_text_encoder_outputs", "--cache_text_encoder_outputs_to_disk"]
    more = ["--network_module", "networks.lora", "--network_train_unet_only", "--max_train_steps", 1]
    out = tmp_path / "out"
    done = script("sdxl_train_network.py", *argv, *cached, *more, "--output_dir", out, "--output_name", "x")
    assert done.returncode == 0, done.stderr
    events, _ = read_events(out / "x.run" / "events.jsonl")
    assert {"cache latents", "cache text", "train"} <= {event["name"] for event in events if event["kind"] == "phase"}
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in pictures.iterdir()} == before


@pytest.mark.slow
def test_two_processes_share_the_work(pictures: Path, tiny_sd1: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "sd_scripts/tools/cache_latents.py"), *flags(tiny_sd1, pictures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 pictures encoded here, 2 were done already or are another process's") == 1
    assert len(list(pictures.glob("*_sd.npz"))) == 4
