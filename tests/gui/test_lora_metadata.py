"""Train like this LoRA: settings from the header of a trained file, and headers that are damaged or hostile."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from kohya_gui import command, configs, lora_metadata
from kohya_gui.model_kind import resolve
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.parse import parse
from sd_scripts.training.metadata import RunFacts, Sections, build_metadata

LORA = {"lora_unet_a.lora_down.weight": [4, 8], "lora_te_a.lora_down.weight": [4, 8]}


def head(notes: Any, shapes: dict[str, list[int]] | None = None) -> bytes:
    """The first bytes of a .safetensors file with these notes and tensors."""
    table: dict[str, Any] = {
        name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in (shapes or LORA).items()
    }
    raw = json.dumps({"__metadata__": notes, **table}).encode()
    return struct.pack("<Q", len(raw)) + raw


def tell(notes: Any, shapes: dict[str, list[int]] | None = None, tab: str | None = None) -> configs.Opened:
    """What the page makes of such a file."""
    return configs.open_header("x.safetensors", head(notes, shapes), tab)


FORM: dict[str, Any] = {
    "model_family": "sd1",
    "output_name": "cat",
    "training_comment": "my cat",
    "learning_rate": 1e-4,
    "unet_lr": 2e-4,
    "text_encoder_lr": [5e-5],
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 10,
    "optimizer_type": "AdamW8bit",
    "optimizer_args": ["weight_decay=0.1", "betas=(0.9,0.99)"],
    "max_train_steps": 1234,
    "seed": 7,
    "mixed_precision": "fp16",
    "clip_skip": 2,
    "max_token_length": 150,
    "gradient_checkpointing": True,
    "gradient_accumulation_steps": 2,
    "cache_latents": True,
    "train_batch_size": 3,
    "resolution": "512,640",
    "enable_bucket": True,
    "min_bucket_reso": 320,
    "max_bucket_reso": 960,
    "flip_aug": True,
    "shuffle_caption": True,
    "keep_tokens": 1,
    "caption_dropout_rate": 0.1,
    "noise_offset": 0.05,
    "min_snr_gamma": 5.0,
    "loss_type": "huber",
    "huber_schedule": "exponential",
    "network_dim": 16,
    "network_alpha": 8.0,
    "network_dropout": 0.1,
    "scale_weight_norms": 1.0,
}


@pytest.mark.parametrize(
    "network",
    [
        {"LoRA_type": "Standard", "block_dims": ",".join(["4"] * 25), "rank_dropout": 0.2},
        {"LoRA_type": "Kohya LoCon", "conv_dim": 4, "conv_alpha": 2.0},
        {"LoRA_type": "LyCORIS/LoKr", "conv_dim": 4, "factor": 8, "use_tucker": True, "LyCORIS_preset": "attn-mlp"},
        {"LoRA_type": "LyCORIS/DyLoRA", "unit": 4},
        {"LoRA_type": "Kohya LoHa", "conv_dim": 4, "use_tucker": True, "loraplus_lr_ratio": 4.0},
        {"LoRA_type": "Kohya LoKr", "factor": 8, "decompose_both": True},
        {"LoRA_type": "Kohya OFT", "enable_conv": True, "network_train_unet_only": False},
        {"LoRA_type": "Kohya DyLoRA", "unit": 4},
        {"LoRA_type": "LoRA-FA", "conv_dim": 4, "conv_alpha": 1.0},
        {"LoRA_type": "Standard", "dora_wd": True, "rs_lora": True, "init_lora_weights": "pissa"},
    ],
    ids=lambda value: value["LoRA_type"],
)
def test_a_file_of_our_trainer_gives_back_the_options_it_was_trained_with(
    network: dict[str, Any], tmp_path: Path
) -> None:
    places = {"pretrained_model_name_or_path": "m", "train_data_dir": "d", "output_dir": "o"}
    form = {**FORM, **network}
    sent = command.build("train_network", {**form, **places}, job_dir=tmp_path).toml
    given = [part for key, value in sent.items() for part in _flag(key, value)]
    config = parse("train_network", given)
    sections = {name: getattr(config, name) for name in Sections.__dataclass_fields__}
    entry = {"resolution": [512, 640], "enable_bucket": True, "min_bucket_reso": 320, "max_bucket_reso": 960}
    facts = RunFacts(
        1, 1.0, 10, 0, 10, 3, 1234, 3, "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.99))",
        datasets=[entry],
    )  # fmt: skip
    options = config.network
    notes = {
        "ss_network_module": options.network_module,
        "ss_network_dim": str(options.network_dim),
        "ss_network_alpha": str(options.network_alpha),
        "ss_network_dropout": str(options.network_dropout),
        "ss_scale_weight_norms": str(options.scale_weight_norms),
        "ss_network_args": json.dumps(dict(item.split("=", 1) for item in options.network_args or ())),
    }
    found = tell(build_metadata(Sections(**sections), facts, notes))
    assert found.tab == "lora" and found.partial
    again = command.build("train_network", {**found.values, **places}, job_dir=tmp_path).toml
    assert again == sent
    said = " ".join(line.message for line in found.report)
    assert "The base model was called m." in said and "does not tell" in said
    assert not {"train_data_dir", "output_dir", "pretrained_model_name_or_path"} & found.values.keys()


def _flag(key: str, value: Any) -> list[str]:
    if value is True:
        return [f"--{key}"]
    return [f"--{key}", *map(str, value)] if isinstance(value, list) else [f"--{key}", str(value)]


def test_what_was_not_used_does_not_stay_from_the_form_before() -> None:
    found = tell({"ss_network_module": "networks.lora", "ss_min_snr_gamma": "None", "ss_max_train_steps": "5"})
    unused = {"min_snr_gamma": None, "max_train_epochs": None, "rank_dropout": None, "network_args": None}
    assert found.values.items() >= unused.items() and found.values["max_train_steps"] == 5


@pytest.mark.parametrize(
    ("notes", "values"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, {"model_family": "sdxl"}),
        ({"ss_base_model_version": "sd_v2_v"}, {"model_family": "sd2-v"}),
        ({"ss_v2": "True"}, {"model_family": "sd2"}),
        ({"ss_lr_scheduler": "adafactor:0.0001"}, {"lr_scheduler": "adafactor", "learning_rate": 1e-4}),
        ({"ss_text_encoder_lr": "[1e-05, 2e-05]"}, {"text_encoder_lr": [1e-5, 2e-5]}),
        ({"ss_optimizer": "torch.optim.sgd.SGD(nesterov=True,momentum=0.9)"}, {"optimizer_type": "SGDNesterov"}),
        ({"ss_optimizer": "my.own.Optimizer"}, {"optimizer_type": "my.own.Optimizer", "optimizer_args": None}),
        ({"ss_network_module": "sd_scripts.networks.lokr"}, {"LoRA_type": "Kohya LoKr"}),
        ({"ss_network_module": "networks.loha", "ss_network_args": '{"factor": "4"}'}, {"network_args": ["factor=4"]}),
        ({"ss_network_module": "strange.module"}, {"LoRA_type": "Custom", "network_module": "strange.module"}),
        (
            {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "loha", "conv_dim": 4, "new": "1"}'},
            {"LoRA_type": "LyCORIS/LoHa", "conv_dim": 4, "network_args": ["new=1"]},
        ),
        (
            {"ss_datasets": '[{"batch_size_per_device": 4, "resolution": [768, 768]}]'},
            {"train_batch_size": 4, "resolution": "768,768"},
        ),
        ({"ss_seed": "x", "ss_keep_tokens": "2"}, {"keep_tokens": 2, "network_train_unet_only": False}),
    ],
)
def test_other_trainers_files(notes: dict[str, str], values: dict[str, Any]) -> None:
    assert {key: tell(notes).values.get(key, "missing") for key in values} == values


@pytest.mark.parametrize(
    ("shapes", "values"),
    [
        ({"lora_unet_a.lora_down.weight": [16, 320]}, {"LoRA_type": "Standard", "network_dim": 16}),
        (
            {"lora_unet_a.lora_down.weight": [16, 320], "lora_unet_b.lora_down.weight": [8, 320, 3, 3]},
            {"LoRA_type": "Kohya LoCon", "network_dim": 16, "conv_dim": 8},
        ),
        (
            {"lora_unet_a.hada_w1_a": [320, 4], "lora_unet_a.hada_w1_b": [4, 320]},
            {"LoRA_type": "LyCORIS/LoHa", "network_dim": 4},
        ),
        (
            {"lora_unet_a.lora_down.weight": [8, 320], "lora_unet_a.dora_scale": [320, 1]},
            {"LoRA_type": "Standard", "network_dim": 8, "dora_wd": True},
        ),
        ({"oft_unet_a.oft_blocks": [4, 80, 80]}, {"LoRA_type": "Kohya OFT", "network_dim": 4}),
        ({"lora_unet_a.oft_blocks": [40, 8, 8]}, {"LoRA_type": "LyCORIS/Diag-OFT", "network_dim": 8}),
        (
            {"lora_unet_a.oft_blocks": [5, 32, 10, 10], "lora_unet_a.rescale": [320, 1]},
            {"LoRA_type": "LyCORIS/BOFT", "network_dim": 10, "rescaled": True},
        ),
        (
            {"lora_unet_a.a1.weight": [320, 4], "lora_unet_a.a2.weight": [4, 320]},
            {"LoRA_type": "LyCORIS/GLoRA", "network_dim": 4},
        ),
        (
            {"lora_unet_a.lokr_w1_a": [8, 2], "lora_unet_a.lokr_w1_b": [2, 8], "lora_unet_a.lokr_t2": [2, 2, 3, 3]},
            {"LoRA_type": "LyCORIS/LoKr", "network_dim": 2, "decompose_both": True, "use_tucker": True},
        ),
        ({"lora_unet_a.lora_down.weight": []}, {"LoRA_type": "Standard", "network_dim": "missing"}),
    ],
    ids=range(10),
)
def test_without_notes_the_tensors_and_the_model_card_tell(
    shapes: dict[str, list[int]], values: dict[str, Any]
) -> None:
    card = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora", "modelspec.resolution": "1024x768"}
    found = tell(card, shapes)
    expected = {**values, "model_family": "sdxl", "resolution": "1024,768"}
    assert {key: found.values.get(key, "missing") for key in expected} == expected
    assert "no notes" in found.report[0].message


def test_only_the_unet_is_seen_in_the_tensors() -> None:
    assert tell({"ss_seed": "1"}, {"lora_unet_a.lora_up.weight": [1, 1]}).values["network_train_unet_only"] is True


def test_an_embedding_goes_to_its_tab() -> None:
    found = tell({}, {"emb_params": [6, 1024]})
    assert (found.tab, found.values) == ("textual_inversion", {"num_vectors_per_token": 6, "model_family": "sd2"})
    assert tell({}, {"clip_l": [2, 768], "clip_g": [2, 1280]}).values["model_family"] == "sdxl"


def test_a_base_model_fills_its_own_field(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(head({}, {"model.diffusion_model.x": [1]}))
    found = configs.open_file(path, otherwise="finetune")
    assert (found.tab, found.values) == ("finetune", {"pretrained_model_name_or_path": str(path)})
    assert configs.open_header("m.safetensors", path.read_bytes()).values == {}


def test_another_tab_takes_what_it_knows() -> None:
    found = tell({"ss_network_dim": "4", "ss_seed": "3"}, tab="dreambooth")
    assert found.tab == "dreambooth" and found.values["seed"] == 3 and "network_dim" not in found.values


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 40_000_000) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"\xff\xfe",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        head([1]),
        head("text"),
        head({"ss_x": 1, "other": "2"}, {"weight": [1]}),
        head({}, {"lora_down": ["x"]}),  # type: ignore[list-item]
        head({"__metadata__": {}}, {"weight": [1]}),
        b"<html>a page that says the file is gone</html>",
    ],
    ids=range(14),
)
def test_hostile_headers_are_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for act in (lambda: configs.open_header("x.safetensors", content), lambda: configs.open_file(path)):
        with pytest.raises(UserError) as caught:
            act()
        assert "\n" not in caught.value.message and len(caught.value.message) < 200


def test_notes_of_any_kind_never_stop_the_file() -> None:
    keys = [f"ss_{key}" for key in ("network_args", "datasets", "dataset_dirs", "resolution", "seed", "optimizer")]
    for value in ("", "[" * 5000, "{}", "[1]", '{"a": {}}', "9" * 5000, "nan", "\x00", "(((", "a=b"):
        found = tell({"ss_network_module": "networks.lora", **dict.fromkeys(keys, value)})
        values = {key: value for key, value in found.values.items() if key != "optimizer_type"}
        assert command.build("train_network", resolve(values)).argv, value


def test_only_the_header_of_a_large_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    content = head({"ss_seed": "5"})
    path.write_bytes(content)
    with path.open("r+b") as file:
        file.truncate(10_000_000_000)
    assert lora_metadata.read_file(path).values["seed"] == 5
