"""What each training tab works out for its command."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from kohya_gui import command
from sd_scripts.finetune.merge_captions_to_metadata import OPTIONS as CAPTIONS
from sd_scripts.finetune.prepare_buckets_latents import OPTIONS as BUCKETS
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.parse import parse
from sd_scripts.schema.tabs import tab_fields, tab_of
from sd_scripts.schema.tools_captions import MergeCaptionsOptions, PrepareBucketsOptions
from sd_scripts.tools.common import parse_section


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """10_cat with 7 pictures and 3_dog with 5; beside them a flat folder with 9 and a text."""
    for name, count in (("IMG/10_cat", 7), ("IMG/3_dog", 5), ("FLAT", 9)):
        (tmp_path / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / name / f"{number}.png").touch()
    (tmp_path / "FLAT" / "notes.txt").touch()
    return tmp_path


def built(name: str, **values: Any) -> command.Plan:
    plan = command.build(name, {"model_family": "sd1", **values}, job_dir=Path("job"), on_cpu=False)
    assert tomllib.loads(plan.toml_text) == plan.toml
    return plan


# ------------------------------------------------------------------ Dreambooth


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({"stop_text_encoder_percent": 30.0, "max_train_steps": 1000}, 300),
        ({"stop_text_encoder_percent": 33.0, "max_train_steps": 10}, 4),
        ({"stop_text_encoder_percent": 50.0}, 800),
        ({"stop_text_encoder_percent": 50.0, "epoch": 2, "max_train_steps": None}, 850),
        ({"stop_text_encoder_percent": 100.0, "max_train_steps": 1000}, None),
        ({"stop_text_encoder_training": 5, "stop_text_encoder_percent": 50.0}, 5),
        ({"stop_text_encoder_training": -1}, -1),
        ({}, None),
    ],
)
def test_the_text_encoder_of_dreambooth_rests_after_a_share_of_the_steps(
    values: dict[str, Any], steps: int | None, pictures: Path
) -> None:
    if values.get("epoch"):
        # 85 showings an epoch, two epochs, five to a step: 34 steps, the half of them 17
        values = {**values, "train_data_dir": str(pictures / "IMG"), "train_batch_size": 5}
        steps = 17
    assert built("train_db", **values).toml.get("stop_text_encoder_training") == steps


def test_a_share_of_unknown_steps_is_refused_for_the_text_encoder(pictures: Path) -> None:
    with pytest.raises(UserError) as caught:
        built("train_db", stop_text_encoder_percent=50, max_train_epochs=3)
    assert caught.value.key == "stop_text_encoder_percent"
    counted = built("train_db", stop_text_encoder_percent=50, max_train_epochs=2, train_data_dir=str(pictures / "IMG"))
    assert counted.toml["stop_text_encoder_training"] == 85


def test_what_only_one_family_takes_is_not_sent_for_the_other() -> None:
    values = {
        "stop_text_encoder_percent": 50,
        "no_token_padding": True,
        "learning_rate_te": 1e-6,
        "weighted_captions": True,
        "train_text_encoder": True,
        "learning_rate_te1": 2e-6,
        "block_lr": "1e-5",
        "cache_text_encoder_outputs": True,
    }
    old = built("train_db", **values).toml
    assert set(old) == {
        "stop_text_encoder_training", "no_token_padding", "learning_rate_te", "weighted_captions", "job_dir",
    }  # fmt: skip
    new = built("train_db", **{**values, "model_family": "sdxl"}).toml
    assert set(new) == {
        "train_text_encoder", "learning_rate_te1", "block_lr", "cache_text_encoder_outputs", "job_dir",
    }  # fmt: skip


# ------------------------------------------------------------------ Textual Inversion


@pytest.mark.parametrize(
    ("template", "sent"),
    [("caption", None), ("object template", "use_object_template"), ("style template", "use_style_template")],
)
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_ready_sentences_become_the_trainer_s_switch(template: str, sent: str | None, family: str) -> None:
    plan = built("train_textual_inversion", template=template, token_string="mycat", model_family=family)
    assert {key for key in plan.toml if key.startswith("use_")} == ({sent} if sent else set())
    assert plan.toml["token_string"] == "mycat"


def test_the_switch_for_xti_chooses_its_trainer_except_for_sdxl() -> None:
    assert built("train_textual_inversion", xti=True).argv[-3].endswith("train_textual_inversion_XTI.py")
    wrong = built("train_textual_inversion", xti=True, model_family="sdxl")
    assert wrong.argv[-3].endswith("sdxl_train_textual_inversion.py")
    assert "xti" not in wrong.toml


# ------------------------------------------------------------------ Finetune


def test_finetune_makes_its_lists_first(pictures: Path) -> None:
    plan = built(
        "fine_tune",
        train_data_dir=str(pictures / "FLAT"),
        train_dir=str(pictures / "my lists"),
        pretrained_model_name_or_path="model & more.safetensors",
        resolution="768,512",
        batch_size=3,
        caption_extension=".txt",
        bucket_no_upscale=True,
        max_bucket_reso=2048,
        mixed_precision="bf16",
        flip_aug=True,
    )
    assert [step.name for step in plan.before] == ["collect captions", "choose sizes and encode"]
    first, second = (step.argv for step in plan.before)
    captions: MergeCaptionsOptions = parse_section(CAPTIONS, first[2:], "p")
    assert (captions.train_data_dir, captions.caption_extension, captions.full_path, captions.in_json) == (
        str(pictures / "FLAT"), ".txt", True, None,
    )  # fmt: skip
    buckets: PrepareBucketsOptions = parse_section(BUCKETS, second[2:], "p")
    assert buckets == PrepareBucketsOptions(
        train_data_dir=str(pictures / "FLAT"),
        in_json=captions.out_json,
        out_json=str(pictures / "my lists" / "meta_lat.json"),
        model_name_or_path="model & more.safetensors",
        batch_size=3,
        max_resolution="768,512",
        max_bucket_reso=2048,
        bucket_no_upscale=True,
        mixed_precision="bf16",
        full_path=True,
        flip_aug=True,
    )
    assert all(Path(argv[1]).is_file() for argv in (first, second))
    assert plan.toml["in_json"] == buckets.out_json
    assert plan.toml["enable_bucket"] is True, "the sizes of the lists are the training's"


@pytest.mark.parametrize(
    ("values", "names", "in_json"),
    [
        ({"create_buckets": False, "use_latent_files": False}, ["collect captions"], "lists/meta_cap.json"),
        ({"create_caption": False}, ["choose sizes and encode"], "lists/meta_lat.json"),
        ({"create_caption": False, "create_buckets": False}, [], "lists/meta_lat.json"),
        ({"latent_metadata_filename": "b.json"}, ["collect captions", "choose sizes and encode"], "lists/b.json"),
        ({"in_json": "mine.json"}, [], "mine.json"),
        ({"train_dir": None}, [], None),
        ({"dataset_config": "sets.toml"}, [], None),
    ],
)
def test_which_list_the_trainer_reads(values: dict[str, Any], names: list[str], in_json: str | None) -> None:
    given = {"train_data_dir": "pics", "train_dir": "lists", "pretrained_model_name_or_path": "m.ckpt", **values}
    plan = built("fine_tune", **given)
    assert [step.name for step in plan.before] == names
    found = plan.toml.get("in_json")
    assert (Path(found).as_posix() if found else None) == in_json
    assert ("enable_bucket" in plan.toml) == (found is not None and found != "mine.json")


def test_sdxl_encodes_in_full_precision_where_its_vae_needs_it() -> None:
    given = {"train_data_dir": "p", "train_dir": "l", "pretrained_model_name_or_path": "m", "mixed_precision": "fp16"}
    for more, precision in (({}, "fp16"), ({"no_half_vae": True}, "no")):
        plan = built("fine_tune", **{**given, **more, "model_family": "sdxl"})
        assert plan.argv[-3].endswith("sdxl_train.py")
        assert parse_section(BUCKETS, plan.before[1].argv[2:], "p").mixed_precision == precision


@pytest.mark.parametrize("name", ["../up.json", "/etc/x.json", "a\\b.json", "", "..", "a:b", "x\n.json", "con|x"])
def test_a_list_s_name_cannot_leave_its_folder(name: str) -> None:
    with pytest.raises(UserError) as caught:
        built("fine_tune", train_data_dir="p", train_dir="l", caption_metadata_filename=name or " ")
    assert caught.value.key == "caption_metadata_filename"


def test_a_picture_folder_that_looks_like_a_flag_stays_a_folder() -> None:
    plan = built("fine_tune", train_data_dir="--debug", train_dir="l", pretrained_model_name_or_path="-x")
    assert parse_section(CAPTIONS, plan.before[0].argv[2:], "p").train_data_dir == "--debug"
    assert parse_section(BUCKETS, plan.before[1].argv[2:], "p").model_name_or_path == "-x"


def test_what_is_missing_for_the_lists_is_said() -> None:
    plan = built("fine_tune", train_dir="l", pretrained_model_name_or_path="m")
    assert plan.before == [] and any("picture folder" in note for note in plan.notes)


@pytest.mark.parametrize("flip", [False, True])
def test_steps_of_finetune_follow_from_pictures_repeats_and_epochs(flip: bool, pictures: Path) -> None:
    plan = built(
        "fine_tune",
        train_data_dir=str(pictures / "FLAT"),
        train_dir="l",
        dataset_repeats=10,
        train_batch_size=4,
        epoch=2,
        max_train_steps=None,
        lr_scheduler="cosine",
        lr_warmup=10,
        flip_aug=flip,
    )
    assert plan.toml["max_train_steps"] == 45, "mirroring shows no picture more often"
    assert plan.toml["lr_warmup_steps"] == 4


# ------------------------------------------------------------------ control networks


def test_control_networks_take_their_own_options(tmp_path: Path) -> None:
    plan = built("train_controlnet", conditioning_data_dir="edges", controlnet_model_name_or_path="c.safetensors")
    assert plan.argv[-3].endswith("train_controlnet.py")
    assert set(plan.toml) == {"conditioning_data_dir", "controlnet_model_name_or_path", "job_dir"}
    small = built("sdxl_train_control_net_lllite", cond_emb_dim=16, network_dim=8, model_family="sdxl")
    assert small.argv[-3].endswith("sdxl_train_control_net_lllite.py")
    assert set(small.toml) == {"cond_emb_dim", "network_dim", "job_dir"}


@pytest.mark.parametrize("name", ["train_db", "fine_tune", "train_textual_inversion", "train_controlnet"])
def test_the_trainer_reads_what_a_tab_sends(name: str, pictures: Path, tmp_path: Path) -> None:
    values = {
        "pretrained_model_name_or_path": "model.safetensors",
        "train_data_dir": str(pictures / "IMG"),
        "output_dir": str(tmp_path / "out"),
        "resolution": "512",
        "conditioning_data_dir": str(pictures / "IMG"),
        "token_string": "mycat",
        "in_json": "meta.json",
        "train_text_encoder": True,
    }
    known = tab_fields(tab_of(name).name)
    plan = command.build(name, {key: value for key, value in values.items() if key in known}, job_dir=tmp_path)
    (tmp_path / "config.toml").write_text(plan.toml_text, encoding="utf-8")
    config = parse(name, plan.argv[-2:])
    assert config.dataset.resolution == "512"
