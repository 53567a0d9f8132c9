"""Command line and TOML: precedence, types at the door, nearest names, files that are missing or exist already."""

from pathlib import Path
from typing import Any

import pytest

from sd_scripts.schema.commands import TrainNetworkConfig
from sd_scripts.schema.errors import DataError, UserError
from sd_scripts.schema.fields import convert, fields, find_command, split_words
from sd_scripts.schema.parse import parse
from sd_scripts.schema.suggest import nearest
from sd_scripts.schema.toml_text import dumps
from sd_scripts.schema.values import parse_face_crop_range, parse_resolution

NEEDED = {
    "pretrained_model_name_or_path": "model.safetensors",
    "train_data_dir": "pictures",
    "resolution": "512",
    "network_module": "networks.lora",
    "output_dir": "out",
}
BASE = [word for key, value in NEEDED.items() for word in (f"--{key}", value)]


def parsed(*argv: str) -> TrainNetworkConfig:
    return parse("train_network", [*BASE, *argv])


def write(folder: Path, text: str, name: str = "run.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_and_given() -> None:
    config = parsed()
    assert config.given == set(NEEDED)
    assert config.optimizer.learning_rate == 2e-6
    assert config.saving.save_model_as == "safetensors"
    assert config.network.network_args is None
    assert config.command == "train_network"


def test_types_from_the_command_line() -> None:
    config = parsed(
        "--learning_rate=1e-4", "--network_args", "conv_dim=4", "conv_alpha=2", "--text_encoder_lr", "5e-5", "1e-5",
        "--network_dim", "16", "--flip_aug", "--seed", str(2**32 - 1), "--base_weights_multiplier", "0.5",
        "--base_weights", "a b.safetensors", "--output_name=-dash", "--adaptive_noise_scale=-0.01",
        "--noise_offset", "0.1",
    )  # fmt: skip
    assert config.optimizer.learning_rate == 1e-4
    assert config.network.network_args == ["conv_dim=4", "conv_alpha=2"]
    assert config.optimizer.text_encoder_lr == [5e-5, 1e-5]
    assert config.network.network_dim == 16
    assert config.dataset.flip_aug is True
    assert config.training.seed == 2**32 - 1
    assert config.network.base_weights == ["a b.safetensors"]
    assert config.saving.output_name == "-dash"
    assert config.loss.adaptive_noise_scale == -0.01


def test_command_line_over_file_over_default(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '[first]\nlearning_rate = 1e-3\nnetwork_dim = 8\n[second]\nflip_aug = true\ncaption_extension = ".txt"\n',
    )
    config = parsed("--config_file", str(path), "--network_dim", "32")
    assert config.optimizer.learning_rate == 1e-3
    assert config.network.network_dim == 32
    assert config.dataset.flip_aug is True
    assert config.captions.caption_extension == ".txt"
    assert config.training.max_train_steps == 1600
    assert {"learning_rate", "network_dim", "flip_aug"} <= config.given
    assert "max_train_steps" not in config.given


def test_a_value_equal_to_its_default_on_the_command_line_still_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "max_train_steps = 50\n")
    assert parsed("--config_file", str(path), "--max_train_steps", "1600").training.max_train_steps == 1600


def test_file_may_hold_everything_without_tables_and_its_ending_may_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, dumps(NEEDED))
    assert parse("train_network", ["--config_file", str(path.with_suffix(""))]).model.pretrained_model_name_or_path


def test_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbfnetwork_dim = 4\n")
    assert parsed("--config_file", str(path)).network.network_dim == 4


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.toml does not exist") as caught:
        parsed("--config_file", str(tmp_path / "absent"))
    assert caught.value.key == "config_file"


def test_broken_file_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, 'train_data_dir = "C:\\Users\\me"\n')
    with pytest.raises(UserError, match="line 1") as caught:
        parsed("--config_file", str(path))
    assert "single quotes" in caught.value.hint


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("network_dim = 'many'", ["network_dim", "'many'", "whole number", "1 to 100000"]),
        ("network_dim = 4.5", ["4.5", "whole number"]),
        ("flip_aug = 'perhaps'", ["flip_aug", "true or false"]),
        ("learning_rate = true", ["learning_rate", "a number"]),
        ("learning_rate = inf", ["learning_rate", "a number"]),
        ("output_name = [1]", ["output_name", "a text"]),
        ("network_args = [['a']]", ["network_args", "list of texts"]),
        ("text_encoder_lr = ['x']", ["text_encoder_lr", "list of numbers"]),
        ("lr_warmup_steps = 1.5", ["lr_warmup_steps", "share"]),
        ("caption_dropout_rate = 2", ["caption_dropout_rate", "at most 1"]),
        ("train_batch_size = 0", ["train_batch_size", "at least 1"]),
        ("mixed_precision = 'fp17'", ["mixed_precision", "no, fp16 or bf16", "did you mean fp16"]),
        ("max_token_length = 100", ["max_token_length", "150 or 225"]),
        ("text_encoder_lr = [-1]", ["text_encoder_lr", "at least 0"]),
    ],
)
def test_a_wrong_value_is_named_with_file_key_and_what_is_allowed(tmp_path: Path, line: str, words: list[str]) -> None:
    path = write(tmp_path, line + "\n")
    with pytest.raises(UserError) as caught:
        parsed("--config_file", str(path))
    text = str(caught.value)
    assert [word for word in [*words, str(path)] if word not in text] == []
    assert caught.value.key == line.split(" ")[0]


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("resolution = 768", "resolution", "768"),
        ("persistent_data_loader_workers = 0", "persistent_data_loader_workers", False),
        ("bucket_reso_steps = 64.0", "bucket_reso_steps", 64),
        ("learning_rate = '1e-4'", "learning_rate", 1e-4),
        ("text_encoder_lr = 5e-5", "text_encoder_lr", [5e-5]),
        (
            "optimizer_args = 'weight_decay=0.1 betas=0.9,0.99'",
            "optimizer_args",
            ["weight_decay=0.1", "betas=0.9,0.99"],
        ),
        ("lr_scheduler = 'cosine'\nlr_warmup_steps = 0.1", "lr_warmup_steps", 0.1),
        ("max_token_length = 75", "max_token_length", None),
        ("save_every_n_epochs = 0", "save_every_n_epochs", None),
        ("min_snr_gamma = 0", "min_snr_gamma", None),
        ("unet_lr = 0", "unet_lr", 0.0),
        ("clip_skip = 1", "clip_skip", 1),
        ("vae = ''", "vae", None),
        ("seed = 0", "seed", 0),
    ],
)
def test_values_of_known_programs_are_understood(tmp_path: Path, line: str, key: str, expected: Any) -> None:
    base = [word for name, given in NEEDED.items() if name != key for word in (f"--{name}", given)]
    config = parse("train_network", [*base, "--config_file", str(write(tmp_path, line + "\n"))])
    value = config.values()[key]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(("text", "value"), [("10%", 0.1), ("0.25", 0.25), ("100", 100), ("0", 0), ("1e2", 100)])
def test_warmup_as_steps_or_share(text: str, value: float) -> None:
    found = parsed("--lr_scheduler", "cosine", "--lr_warmup_steps", text).optimizer.lr_warmup_steps
    assert found == value and type(found) is type(value)


def test_unknown_key_in_file_names_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "learnig_rate = 1e-4\n")
    with pytest.raises(UserError, match="learnig_rate in .*run.toml is no option") as caught:
        parsed("--config_file", str(path))
    assert caught.value.hint == "Did you mean learning_rate?"


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("--learnin_rates=1", "learning_rate"),
        ("--Network-Dim", "network_dim"),
        ("--conv_dim=4", "network_args"),
        ("--num_processes=2", "accelerate launch"),
        ("--LoRA_type=Standard", "page"),
        ("--zzz", "docs/options.md"),
    ],
)
def test_unknown_flag_says_what_to_do(argument: str, hint: str) -> None:
    with pytest.raises(UserError, match="is no option of train_network.py") as caught:
        parsed(argument)
    assert hint in caught.value.hint


def test_stray_word() -> None:
    with pytest.raises(UserError, match="'stray' on the command line"):
        parsed("--network_dim", "4", "stray")


def test_abbreviation_works_until_it_is_ambiguous() -> None:
    assert parsed("--learning", "1e-4").optimizer.learning_rate == 1e-4
    with pytest.raises(UserError, match="ambiguous option: --save_last"):
        parsed("--save_last", "1")


def test_flag_without_its_value() -> None:
    with pytest.raises(UserError, match="--network_dim: expected one argument"):
        parsed("--network_dim")


def test_retired_keys_only_warn(tmp_path: Path) -> None:
    path = write(tmp_path, "epoch = 3\nnetwork_dim = 4\n")
    config = parsed("--config_file", str(path), "--no_token_padding", "--blocks_to_swap", "10")
    assert config.network.network_dim == 4
    assert [
        word
        for word in ("epoch", "no_token_padding", "blocks_to_swap")
        if not any(word in str(w) for w in config.warnings)
    ] == []


def test_a_key_in_two_tables_is_reported(tmp_path: Path) -> None:
    config = parsed("--config_file", str(write(tmp_path, "[a]\nnetwork_dim = 4\n[b]\nnetwork_dim = 8\n")))
    assert config.network.network_dim == 8
    assert any("more than once" in str(warning) for warning in config.warnings)


def test_all_problems_at_once() -> None:
    with pytest.raises(UserError) as caught:
        parse("train_network", [])
    for key in ("base model", "pictures", "resolution", "network module", "output folder"):
        assert key in str(caught.value)
    assert caught.value.key == "pretrained_model_name_or_path"


def test_output_config_writes_what_differs_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "made"
    argv = ["--config_file", str(target), "--output_config", "--flip_aug",
            "--network_args", 'down_lr_weight="cosine +.25"', "--learning_rate", "1e-4",
            "--max_train_steps", "1600", "--wandb_api_key", "secret",
            "--output_name", "Ä \" x"]  # fmt: skip
    with pytest.raises(SystemExit) as left:
        parsed(*argv)
    assert left.value.code == 0
    text = (tmp_path / "made.toml").read_text(encoding="utf-8")
    assert "secret" not in text and "max_train_steps" not in text and "config_file" not in text
    config = parse("train_network", ["--config_file", str(target)])
    assert config.network.network_args == ['down_lr_weight="cosine +.25"']
    assert config.saving.output_name == 'Ä " x'
    assert config.optimizer.learning_rate == 1e-4
    assert "made.toml" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists already"):
        parsed(*argv)
    assert (tmp_path / "made.toml").read_text(encoding="utf-8") == text


def test_output_config_needs_a_name() -> None:
    with pytest.raises(UserError, match="name of the file"):
        parsed("--output_config")


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse("train_network", ["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert [
        key for key in ("--learning_rate", "--network_module", "--job_dir", "--lr_warmup_steps") if key not in text
    ] == []
    assert "10%" in text


def test_unknown_command_names_the_nearest() -> None:
    with pytest.raises(UserError, match="train_netwrk") as caught:
        find_command("train_netwrk")
    assert "train_network" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "size"), [("512", (512, 512)), ("512,768", (512, 768)), ("640 , 448", (640, 448)), ("768x512", (768, 512))]
)
def test_resolution(text: str, size: tuple[int, int]) -> None:
    assert parse_resolution(text) == size


@pytest.mark.parametrize("text", ["", "0", "512,", "1,2,3", "-512", "big", "512.5"])
def test_resolution_that_is_none(text: str) -> None:
    if text == "512,":
        assert parse_resolution(text) == (512, 512)
    else:
        with pytest.raises(UserError, match="resolution is"):
            parse_resolution(text)


def test_face_crop_range() -> None:
    assert parse_face_crop_range("2.0,4.0") == (2.0, 4.0)
    assert parse_face_crop_range("") is None
    for text in ("4,2", "2", "a,b", "0,1", "1,2,3"):
        with pytest.raises(UserError, match="face_crop_aug_range"):
            parse_face_crop_range(text)


def test_words_keep_backslashes_and_quoted_blanks() -> None:
    assert split_words(r'a=1 "b=x y" c=C:\new d="e f"') == ["a=1", "b=x y", r"c=C:\new", "d=e f"]
    with pytest.raises(UserError, match="network_args"):
        convert(fields("train_network")["network_args"], 'a="b')


def test_toml_text_round_trip() -> None:
    import tomllib

    values = {"a": 'q"\\\n\t\x7f\x01é', "b": [1, 2.5, True, "x"], "c": 1e-4, "d": False, "e": -7, "with blank": ""}
    assert tomllib.loads(dumps({**values, "none": None})) == values
    with pytest.raises(TypeError):
        dumps({"a": {"b": 1}})


def test_nearest_is_silent_without_a_resemblance() -> None:
    assert nearest("zzz", ["learning_rate"]) == ""


def test_errors_carry_key_and_hint() -> None:
    error = DataError("No picture.", "train_data_dir", "Put some in.")
    assert isinstance(error, UserError)
    assert (error.message, error.key, error.hint) == ("No picture.", "train_data_dir", "Put some in.")
    assert str(error) == "No picture. Put some in."
