"""The command: what is sent, what is worked out, how it is printed."""

import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from kohya_gui import command, configs
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import trainer_fields
from sd_scripts.schema.parse import parse

FIELDS = trainer_fields("train_network")


def toml_of(values: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What the trainer reads, without the job folder."""
    plan = command.build("train_network", values, on_cpu=False, **more)
    read = tomllib.loads(plan.toml_text)
    assert read == plan.toml
    read.pop("job_dir")
    return read


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """The picture folders that the recorded commands were made with."""
    for name, count in (("10_cat", 7), ("3_dog", 5)):
        (tmp_path / "IMG" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "IMG" / name / f"{number}.png").touch()
    return tmp_path


def test_sdxl_takes_its_own_trainer_and_options(tmp_path: Path) -> None:
    values = {
        "pretrained_model_name_or_path": "xl.safetensors",
        "train_data_dir": "pictures",
        "resolution": "1024",
        "output_dir": str(tmp_path),
        "network_dim": 4,
        "text_encoder_lr": [0.0],
        "sdxl": True,
        "cache_text_encoder_outputs": True,
        "additional_parameters": "--cache_text_encoder_outputs_to_disk",
    }
    plan = command.build("train_network", values, job_dir=tmp_path)
    (tmp_path / "config.toml").write_text(plan.toml_text, encoding="utf-8")
    config = parse("sdxl_train_network", plan.argv[-2:])
    assert plan.argv[-3].endswith("sdxl_train_network.py")
    assert config.text_cache.cache_text_encoder_outputs and config.text_cache.cache_text_encoder_outputs_to_disk
    assert config.network.network_train_unet_only
    again = command.build(plan.command, values, job_dir=tmp_path)
    assert again.argv == plan.argv
    without = command.build("train_network", {**values, "sdxl": False, "additional_parameters": ""}, job_dir=tmp_path)
    assert without.argv[-3].endswith("/train_network.py")
    assert "cache_text_encoder_outputs" not in without.toml
    with pytest.raises(UserError, match="cache_text_encoder_outputs"):
        command.build("train_network", {**values, "sdxl": False})


def test_every_method_has_at_most_one_trainer_for_sdxl() -> None:
    on = {"sdxl": True}
    assert command.trainer("fine_tune", on) == command.trainer("train_db", on) == "sdxl_train"
    assert command.trainer("train_textual_inversion", on) == "sdxl_train_textual_inversion"
    assert command.trainer("train_controlnet", on) == "train_controlnet"
    assert command.trainer("sdxl_train_network", {}) == "sdxl_train_network"
    with pytest.raises(UserError):
        command.trainer("train_network", {"sdxl": "maybe"})


def test_nothing_is_sent_for_defaults_and_what_does_not_apply() -> None:
    values = {
        "max_train_steps": 1600,
        "network_alpha": 1,
        "huber_c": 0.3,
        "loss_type": "l2",
        "multires_noise_iterations": 6,
        "noise_offset_type": "Original",
        "sample_sampler": "euler_a",
        "sample_prompt_text": "a cat",
    }
    assert toml_of(values) == {"network_module": "networks.lora"}
    assert toml_of({**values, "loss_type": "huber"})["huber_c"] == 0.3


def test_the_trainer_reads_what_is_sent(tmp_path: Path) -> None:
    odd = 'C:\\pictures\\"my" cat — ünïcode\t-- {x}'
    values = {
        "pretrained_model_name_or_path": "models/base.safetensors",
        "resolution": "512",
        "train_data_dir": odd,
        "output_dir": str(tmp_path),
        "optimizer_type": "AdamW",
        "optimizer_args": ["weight_decay=0.1", "betas=0.9,0.99"],
        "learning_rate": 1e-4,
        "text_encoder_lr": [5e-5],
        "network_dim": 8,
        "flip_aug": True,
    }
    plan = command.build("train_network", values, job_dir=tmp_path)
    path = tmp_path / "config.toml"
    path.write_text(plan.toml_text, encoding="utf-8")
    assert plan.argv[-2:] == ["--config_file", str(path)]
    config = parse("train_network", plan.argv[-2:])
    read = config.values()
    assert {key: read[key] for key in values} == values
    assert read["job_dir"] == str(tmp_path)
    assert Path(plan.argv[-3]).is_absolute() and plan.argv[-3].endswith("train_network.py")


@pytest.mark.parametrize(
    ("rates", "sent"),
    [
        ({"text_encoder_lr": [0.0], "unet_lr": 1e-4}, {"unet_lr": 1e-4, "network_train_unet_only": True}),
        ({"text_encoder_lr": [0.0]}, {"network_train_unet_only": True}),
        (
            {"text_encoder_lr": [5e-5], "unet_lr": 0.0},
            {"text_encoder_lr": [5e-5], "network_train_text_encoder_only": True},
        ),
        ({"text_encoder_lr": [5e-5], "unet_lr": 1e-4}, {"text_encoder_lr": [5e-5], "unet_lr": 1e-4}),
    ],
)
def test_a_rate_of_zero_trains_only_the_other_part(rates: dict[str, Any], sent: dict[str, Any]) -> None:
    assert toml_of(rates) == {"network_module": "networks.lora", **sent}


@pytest.mark.parametrize(
    ("values", "steps", "warmup"),
    [
        ({"epoch": 3, "train_batch_size": 2, "gradient_accumulation_steps": 4}, 32, None),
        ({"epoch": 1, "reg_data_dir": "reg"}, 170, None),
        ({"epoch": 2, "lr_warmup": 10}, 170, 17),
        ({"max_train_steps": 1000, "epoch": 2, "lr_warmup": 5}, 1000, 50),
        ({"max_train_steps": 1000, "lr_warmup": 5, "lr_warmup_steps": 7}, 1000, 7),
        ({"max_train_epochs": 4, "epoch": 2, "lr_warmup": 5}, None, 0.05),
        ({"dataset_config": "set.toml", "epoch": 150, "lr_warmup": 5}, None, 0.05),
    ],
)
def test_length_and_warmup(values: dict[str, Any], steps: int | None, warmup: float | None, dataset: Path) -> None:
    sent = toml_of({"train_data_dir": str(dataset / "IMG"), "lr_scheduler": "cosine", **values})
    assert sent.get("max_train_steps") == steps
    assert sent.get("lr_warmup_steps") == warmup


def test_a_switch_of_a_plugin_is_only_sent_when_on() -> None:
    values = {"LoRA_type": "LyCORIS/LoKr", "conv_dim": 4, "conv_alpha": 1.0, "use_cp": False, "dora_wd": True}
    sent = toml_of(values)
    assert sent["network_module"] == "lycoris.kohya"
    assert {"algo=lokr", "conv_dim=4", "conv_alpha=1", "dora_wd=True"} <= set(sent["network_args"])
    assert not any(item.startswith("use_cp") for item in sent["network_args"])


@pytest.mark.parametrize(
    ("kind", "module", "settings", "sent"),
    [
        ("Kohya LoHa", "networks.loha", {"use_tucker": True, "factor": 4}, ["conv_dim=4", "use_tucker=True"]),
        ("Kohya LoKr", "networks.lokr", {"factor": 4}, ["conv_dim=4", "factor=4"]),
        ("Kohya OFT", "networks.oft", {"enable_conv": True, "rank_dropout": 0.1}, ["enable_conv=True"]),
        ("LoRA-FA", "networks.lora_fa", {"dora_wd": True}, ["conv_dim=4"]),
        ("Kohya DyLoRA", "networks.dylora", {"unit": 4}, ["conv_dim=4", "unit=4"]),
        (
            "Standard",
            "networks.lora",
            {"dora_wd": True, "rs_lora": True, "init_lora_weights": "pissa"},
            ["dora_wd=True", "rs_lora=True", "init_lora_weights=pissa"],
        ),
        ("Kohya LoCon", "networks.lora", {"init_lora_weights": "default"}, ["conv_dim=4"]),
    ],
)
def test_kinds_of_our_own(kind: str, module: str, settings: dict[str, Any], sent: list[str]) -> None:
    """What a kind does not take stays in the form."""
    toml = toml_of({"LoRA_type": kind, "conv_dim": 4, **settings})
    assert toml["network_module"] == module
    assert sorted(toml["network_args"]) == sorted(sent)


def test_saved_forms_of_the_newest_version_keep_their_kind() -> None:
    text = '{"LoRA_type": "Kohya LoKr", "factor": 8, "conv_dim": 2, "conv_alpha": 1, "ggpo_beta": 0, "sdxl": true}'
    opened = configs.open_text(text)
    toml = command.build(configs.command_of(opened.tab), opened.values).toml
    assert toml["network_module"] == "networks.lokr"
    assert {"factor=8", "conv_dim=2", "conv_alpha=1"} == set(toml["network_args"])


def test_own_network_settings_come_last() -> None:
    sent = toml_of({"LoRA_type": "Kohya LoCon", "conv_dim": 4, "network_args": ["conv_dim=8", "x=y z"]})
    assert sent["network_args"] == ["conv_dim=4", "conv_dim=8", "x=y z"]


def test_prompts_become_a_file_of_the_job(tmp_path: Path) -> None:
    values = {"sample_prompt_text": "a cat --n dog", "sample_every_n_steps": 10}
    plan = command.build("train_network", values, job_dir=tmp_path)
    assert plan.files == {"prompts.txt": "a cat --n dog\n"}
    assert plan.toml["sample_prompts"] == str(tmp_path / "prompts.txt")


def test_further_flags_go_before_the_fields_and_are_checked() -> None:
    flags = '--lr_scheduler_type "CosineAnnealingLR" --lr_scheduler_args "T_max=1000" "eta_min=0" --learning_rate=3e-4'
    sent = toml_of({"additional_parameters": flags, "learning_rate": 1e-4})
    assert sent["learning_rate"] == 3e-4
    assert sent["lr_scheduler_args"] == ["T_max=1000", "eta_min=0"]
    for flags, word in (
        ("--learning_rat 3e-4 --learning_ratio 1", "learning_rat"),
        ("--learning_rate much", "learning_rate"),
        ("; rm -rf x", ";"),
        ("--config_file other.toml", "config_file"),
        ("--job_dir /etc", "job_dir"),
        ("--allow_plugins", "allow_plugins"),
        ('--output_name "open', "quotation"),
    ):
        with pytest.raises(UserError, match=word):
            command.build("train_network", {"additional_parameters": flags})


def test_only_the_person_at_the_machine_allows_plugins() -> None:
    assert "allow_plugins" not in toml_of({"allow_plugins": True})
    assert "allow_plugins" not in toml_of({}, allow_plugins=True)
    assert "--allow_plugins" in command.build("train_network", {}, allow_plugins=True).argv
    assert "--allow_plugins" not in command.build("train_network", {"allow_plugins": True}).argv


@pytest.mark.parametrize("flag", ["--deepspeed_hostfile hosts", "--deepspeed-hostfile hosts", "--config_file=x.yaml"])
def test_other_machines_are_named_only_where_foreign_code_is_allowed(flag: str) -> None:
    values = {"extra_accelerate_launch_args": f"--quiet {flag}"}
    with pytest.raises(UserError, match="other machines") as refused:
        command.build("train_network", values)
    assert refused.value.key == "extra_accelerate_launch_args"
    assert {"hosts", "x.yaml"} & set(command.build("train_network", values, allow_plugins=True).argv)


def test_unknown_keys_and_values_that_are_none_are_refused() -> None:
    for values, key in (
        ({"learning_rat": 1}, "learning_rat"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"network_dim": "many"}, "network_dim"),
        ({"LoRA_type": "Flux1"}, "LoRA_type"),
        ({"gpu_ids": "0; reboot"}, "gpu_ids"),
        ({"extra_accelerate_launch_args": "--module os"}, "extra_accelerate_launch_args"),
        ({"extra_accelerate_launch_args": "evil.py"}, "extra_accelerate_launch_args"),
        ({"extra_accelerate_launch_args": "--debug evil.py"}, "extra_accelerate_launch_args"),
    ):
        with pytest.raises(UserError) as caught:
            command.build("train_network", values)
        assert caught.value.key == key


def test_every_launcher_setting_is_said(tmp_path: Path) -> None:
    plan = command.build("train_network", {"mixed_precision": "bf16", "gpu_ids": "1"}, job_dir=tmp_path, on_cpu=False)
    launch = plan.argv[: plan.argv.index(str(command.PROJECT / "sd_scripts/train_network.py"))]
    assert launch[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    settings = dict(zip(launch[3::2], launch[4::2]))
    assert settings == {
        "--config_file": str(command.PROJECT / "kohya_gui/accelerate_neutral.json"),
        "--num_processes": "1",
        "--num_machines": "1",
        "--machine_rank": "0",
        "--mixed_precision": "bf16",
        "--dynamo_backend": "no",
        "--num_cpu_threads_per_process": "2",
        "--gpu_ids": "1",
    }
    assert plan.env["PYTHONUTF8"] == "1"


def test_two_processes_without_a_gpu() -> None:
    plan = command.build("train_network", {"num_processes": 2}, on_cpu=True)
    assert "--multi_gpu" in plan.argv and "--cpu" not in plan.argv
    assert plan.env["ACCELERATE_USE_CPU"] == "true"
    assert "ACCELERATE_USE_CPU" not in command.build("train_network", {"num_processes": 2}, on_cpu=False).env


def test_the_launcher_accepts_every_argument_that_is_sent() -> None:
    launch = pytest.importorskip("accelerate.commands.launch")
    values = {
        "num_processes": 2,
        "torch_compile": True,
        "dynamo_use_dynamic": True,
        "gpu_ids": "0,1",
        "main_process_port": 29501,
        "extra_accelerate_launch_args": "--rdzv_backend=static --max_restarts 0 --quiet",
    }
    plan = command.build("train_network", values)
    read = launch.launch_command_parser().parse_args(plan.argv[3:])
    assert (read.num_processes, read.gpu_ids, read.multi_gpu, read.quiet) == (2, "0,1", True, True)
    assert read.training_script_args == plan.argv[-2:]


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        ("--use_fsdp --fsdp_version 2 --fsdp_reshard_after_forward true --fsdp_offload_params=false", "use_fsdp"),
        ("--use_deepspeed --zero_stage 3 --zero3_init_flag false --offload_optimizer_device cpu", "use_deepspeed"),
        ("--same_network", "multi_gpu"),
    ],
)
def test_spread_weights_are_asked_for_at_the_launcher(extra: str, kind: str) -> None:
    """The launcher starts one kind of run, and refuses two."""
    launch = pytest.importorskip("accelerate.commands.launch")
    plan = command.build("train_network", {"num_processes": 2, "extra_accelerate_launch_args": extra})
    read = launch.launch_command_parser().parse_args(plan.argv[3:])
    assert [name for name in ("use_fsdp", "use_deepspeed", "multi_gpu") if getattr(read, name)] == [kind]
    launch._validate_launch_command(read)


def test_every_fsdp_flag_of_the_launcher_may_be_added() -> None:
    launch = pytest.importorskip("accelerate.commands.launch")
    known = [action for action in launch.launch_command_parser()._actions if action.dest.startswith("fsdp_")]
    assert len(known) > 10
    typed = " ".join(f"--{action.dest} {action.choices[0] if action.choices else 'x'}" for action in known)
    assert command.build("train_network", {"extra_accelerate_launch_args": typed}).argv.count("x") >= 10


def test_values_of_a_job_that_an_earlier_version_made_still_give_its_command() -> None:
    before = {
        "model_list": "custom",
        "sdxl": True,
        "sdxl_cache_text_encoder_outputs": True,
        "stop_text_encoder_training": 20,
        "max_resolution": "1024",
        "network_train_unet_only": True,
        "no_token_padding": True,
    }
    plan = command.build("train_network", before, on_cpu=False)
    assert plan.argv[-3].endswith("sdxl_train_network.py")
    assert plan.toml["cache_text_encoder_outputs"] is True and plan.toml["resolution"] == "1024"
    assert not {"stop_text_encoder_training", "model_list"} & plan.toml.keys()
    both = command.build("train_network", {"max_resolution": "1024", "resolution": "768"}, on_cpu=False)
    assert both.toml["resolution"] == "768"
