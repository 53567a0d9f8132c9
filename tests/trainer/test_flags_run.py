"""Every flag about the model, precision, memory, processes, logs and the run itself has its effect."""

from __future__ import annotations

import json
import logging
import os
import tomllib
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from diffusers import AutoencoderKL
from effects import Probe, metadata, result, shows
from runs import events_of
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sd_scripts.families.sd import StableDiffusion
from sd_scripts.models.attention import ChunkedAttnProcessor
from sd_scripts.models.tiny import build_tiny
from sd_scripts.schema.training import TrainingOptions
from sd_scripts.trainer import accelerating

BOTH = {"network_train_unet_only": None}


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Notes every call of a function, which goes on working."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    original = getattr(owner, name)

    def note(*args: Any, **values: Any) -> Any:
        calls.append((args, values))
        return original(*args, **values)

    monkeypatch.setattr(owner, name, note)
    return calls


# --- model -----------------------------------------------------------------------------------------------------------
@shows("pretrained_model_name_or_path", "v2", "v_parameterization")
def test_the_model_is_the_one_given(probe: Probe) -> None:
    assert probe.base("sd2").losses != probe.base("sd1").losses
    wrong = probe("sd1", v2=True)
    assert wrong.code == 2 and wrong.error["key"] == "v2"
    said = [event["message"] for event in probe.base("sd2").of("warn")]
    assert any("2.x" in text for text in said)
    known = probe.trained("sd2", v2=True)
    assert not any("2.x" in event["message"] for event in known.of("warn"))
    assert known.losses == probe.base("sd2").losses
    assert probe.trained("sd2", v_parameterization=True).losses != known.losses


@shows("vae")
def test_another_vae_gives_other_latents(probe: Probe, tmp_path: Path) -> None:
    vae = build_tiny("sd1", seed=99).vae
    vae.save_pretrained(tmp_path / "other vae")
    assert abs(probe.trained(vae=tmp_path / "other vae").losses[0] - probe.base().losses[0]) > 1e-4


@shows("no_half_vae")
def test_the_vae_keeps_32_bits_when_asked(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, AutoencoderKL, "encode")
    probe.trained(mixed_precision="bf16")
    assert {args[1].dtype for args, _ in calls} == {torch.bfloat16}
    calls.clear()
    probe.trained(mixed_precision="bf16", no_half_vae=True)
    assert {args[1].dtype for args, _ in calls} == {torch.float32}


@shows("tokenizer_cache_dir")
def test_the_tokenizer_is_kept(probe: Probe, tmp_path: Path) -> None:
    assert probe.trained(tokenizer_cache_dir=tmp_path).losses == probe.base().losses
    assert (tmp_path / "openai_clip-vit-large-patch14" / "tokenizer_config.json").is_file()


@shows("clip_skip", "max_token_length", "weighted_captions")
def test_reading_of_captions(probe: Probe, thumbs: Path, tmp_path: Path) -> None:
    for picture in (thumbs / "2_photo").glob("*.png"):
        (tmp_path / "1_p").mkdir(exist_ok=True)
        (tmp_path / "1_p" / picture.name).write_bytes(picture.read_bytes())
        words = " ".join(f"word{number}" for number in range(90))
        (tmp_path / "1_p" / f"{picture.stem}.txt").write_text(f"(strong:1.9) {words}", encoding="utf-8")
    plain = probe.trained(data=tmp_path).losses[0]
    for options in ({"clip_skip": 2}, {"max_token_length": 150}, {"weighted_captions": True}):
        assert abs(probe.trained(data=tmp_path, **options).losses[0] - plain) > 1e-6, options


# --- length, precision, memory ---------------------------------------------------------------------------------------
@shows("max_train_steps", "max_train_epochs", "gradient_accumulation_steps")
def test_the_length_of_the_run(probe: Probe) -> None:
    assert len(probe.base(max_train_steps=2).losses) == 2
    assert probe.base(max_train_epochs=1).of("start")[0]["total_steps"] == 8
    grouped = probe.trained(max_train_epochs=1, gradient_accumulation_steps=3)
    assert len(grouped.losses) == 3
    single = probe.trained(max_train_epochs=1, learning_rate=1e-12).losses
    grouped = probe.trained(max_train_epochs=1, learning_rate=1e-12, gradient_accumulation_steps=3)
    means = [sum(single[0:3]) / 3, sum(single[3:6]) / 3, sum(single[6:8]) / 2]
    assert grouped.losses == pytest.approx(means, rel=1e-5)


@shows("initial_step", "initial_epoch", "skip_until_initial_step")
def test_runs_that_start_later(probe: Probe) -> None:
    still = {"learning_rate": 1e-12, "max_train_steps": 10}
    plain = probe.trained(**still, initial_step=7)
    assert [event["step"] for event in plain.of("step")] == [8, 9, 10]
    assert plain.of("step")[0]["epoch"] == 1
    epoch = probe.trained(**still, initial_epoch=2)
    assert [(event["step"], event["epoch"]) for event in epoch.of("step")] == [(9, 2), (10, 2)]
    skipped = probe.trained(**still, initial_step=7, skip_until_initial_step=True)
    assert [(event["step"], event["epoch"]) for event in skipped.of("step")] == [(8, 1), (9, 2), (10, 2)]


@shows("mixed_precision", "full_bf16", "full_fp16")
def test_precision_of_the_computation_and_of_what_is_trained(probe: Probe) -> None:
    def kept(**options: Any) -> tuple[float, set[torch.dtype]]:
        run = probe.trained(**options)
        held = load_file(str(result(run)))
        return run.losses[0], {value.dtype for name, value in held.items() if not name.endswith("alpha")}

    full, mixed, low = kept(), kept(mixed_precision="bf16"), kept(mixed_precision="bf16", full_bf16=True)
    assert 0 < abs(mixed[0] - full[0]) < 0.1
    assert (full[1], mixed[1], low[1]) == ({torch.float32}, {torch.float32}, {torch.bfloat16})
    # No fp16 on a CPU: bf16 takes its place and says so.
    half = probe.trained(mixed_precision="fp16", full_fp16=True)
    assert any(event["code"] == "fp16_on_cpu" for event in half.of("warn"))
    assert probe(full_fp16=True).code == 2


@shows("fp8_base", "fp8_base_unet")
def test_the_base_in_8_bits(probe: Probe) -> None:
    plain = probe.trained(mixed_precision="bf16").losses[0]
    both = probe.trained(mixed_precision="bf16", fp8_base=True).losses[0]
    unet = probe.trained(mixed_precision="bf16", fp8_base_unet=True).losses[0]
    assert len({plain, both, unet}) == 3
    assert both == pytest.approx(plain, rel=0.1) and unet == pytest.approx(plain, rel=0.1)


@shows("gradient_checkpointing", "cpu_offload_checkpointing")
def test_checkpointing_computes_again_and_learns_the_same(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**BOTH, "network_args": None, "max_train_steps": 2}
    plain = probe.trained(**options)
    calls = counted(monkeypatch, torch.utils.checkpoint, "checkpoint")
    again = probe.trained(**options, gradient_checkpointing=True)
    assert len(calls) > 20
    offloads = counted(monkeypatch, torch.autograd.graph, "save_on_cpu")
    offloaded = probe.trained(**options, cpu_offload_checkpointing=True)
    assert len(offloads) == 2
    assert again.losses == pytest.approx(plain.losses, rel=1e-4)
    assert offloaded.losses == pytest.approx(plain.losses, rel=1e-4)


@shows("sdpa", "mem_eff_attn", "xformers")
def test_attention_of_all_kinds_gives_the_same(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, ChunkedAttnProcessor, "__call__")
    assert probe.trained(sdpa=True).losses == probe.base().losses
    assert not calls
    assert probe.trained(mem_eff_attn=True).losses == pytest.approx(probe.base().losses, rel=1e-4)
    assert calls
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    missing = probe(xformers=True)
    assert missing.code == 2 and "pip install" in missing.error["hint"]


@shows("torch_compile", "dynamo_backend")
def test_compiling(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, torch.nn.Module, "compile")
    probe.trained(torch_compile=True, dynamo_backend="no")
    unknown = probe(torch_compile=True, dynamo_backend="ofi")
    assert unknown.code == 2 and unknown.error["key"] == "dynamo_backend"
    assert not calls
    with torch.compiler.set_stance("force_eager"):  # test_whole_runs.py compiles in earnest
        probe.trained(torch_compile=True, dynamo_backend="eager")
    assert [values for _, values in calls] == [{"backend": "eager"}]


@shows("lowram", "highvram")
def test_where_the_parts_lie(probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat")  # so that the VAE is needed later
    loads = counted(monkeypatch, StableDiffusion, "load")
    moves = counted(monkeypatch, AutoencoderKL, "to")
    plain = probe.trained(sample_prompts=prompts)
    assert loads[-1][0][3] == "cpu"
    sent_away = len([args for args, _ in moves if args[1:] == ("cpu",)])
    moves.clear()
    probe.trained(sample_prompts=prompts, highvram=True)
    assert len([args for args, _ in moves if args[1:] == ("cpu",)]) == sent_away - 1
    low = probe.trained(lowram=True)
    assert loads[-1][0][3] == torch.device("cpu"), "the device of the run itself, a GPU where there is one"
    assert [metadata(result(run))["ss_lowram"] for run in (plain, low)] == ["False", "True"]


@shows("ddp_timeout", "ddp_gradient_as_bucket_view", "ddp_static_graph")
def test_what_accelerate_is_told(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, accelerating, "Accelerator")
    probe.trained()
    assert {type(handler).__name__ for handler in calls[0][1]["kwargs_handlers"]} == {"DistributedDataParallelKwargs"}
    probe.trained(ddp_timeout=7, ddp_gradient_as_bucket_view=True, ddp_static_graph=True)
    told = {type(handler).__name__: handler for handler in calls[1][1]["kwargs_handlers"]}
    assert told["InitProcessGroupKwargs"].timeout.total_seconds() == 420
    assert told["DistributedDataParallelKwargs"].gradient_as_bucket_view
    assert told["DistributedDataParallelKwargs"].static_graph


@shows(
    "deepspeed",
    "zero_stage",
    "offload_optimizer_device",
    "offload_optimizer_nvme_path",
    "offload_param_device",
    "offload_param_nvme_path",
    "zero3_init_flag",
    "zero3_save_16bit_model",
    "fp16_master_weights_and_gradients",
)
def test_deepspeed_is_told_or_missed(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = probe(deepspeed=True)
    assert missing.code == 2 and "pip install deepspeed" in missing.error["hint"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: object())
    options = TrainingOptions(
        deepspeed=True,
        zero_stage=3,
        offload_optimizer_device="nvme",
        offload_optimizer_nvme_path="/fast/one",
        offload_param_device="nvme",
        offload_param_nvme_path="/fast/two",
        zero3_save_16bit_model=True,
        fp16_master_weights_and_gradients=True,
    )
    plugin = accelerating.deepspeed_plugin(options, 3, "fp16")
    assert plugin is not None and not plugin.zero3_init_flag
    settings = plugin.deepspeed_config
    stage = settings["zero_optimization"]
    assert stage["stage"] == 3
    assert stage["offload_optimizer"] == {"device": "nvme", "nvme_path": "/fast/one"}
    assert stage["offload_param"] == {"device": "nvme", "nvme_path": "/fast/two"}
    assert stage["stage3_gather_16bit_weights_on_model_save"] is True
    assert settings["fp16"]["fp16_master_weights_and_grads"] is True
    assert settings["train_micro_batch_size_per_gpu"] == 3


# --- logs ------------------------------------------------------------------------------------------------------------
@shows("logging_dir", "log_with", "log_prefix", "log_tracker_name", "log_config")
def test_tensorboard_reads_what_was_logged(probe: Probe, tmp_path: Path) -> None:
    options = {"logging_dir": tmp_path, "log_with": "tensorboard", "log_prefix": "mine-", "log_tracker_name": "project"}
    run = probe.trained(**options, log_config=True, max_train_epochs=2, train_batch_size=4, wandb_api_key="sekrit")
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("mine-20") and (folder / "project").is_dir()
    reader = EventAccumulator(str(folder / "project"))
    reader.Reload()
    tags = reader.Tags()["scalars"]
    assert {"loss/current", "loss/average", "loss/epoch", "lr/unet"} <= set(tags)
    assert [item.value for item in reader.Scalars("loss/current")] == pytest.approx(run.losses)
    assert [item.step for item in reader.Scalars("loss/epoch")] == [1, 2]
    (settings,) = folder.rglob("hparams.yml")
    told = settings.read_text()
    assert "learning_rate: '0.001'" in told and "sekrit" not in told


@shows("wandb_run_name", "wandb_api_key", "log_tracker_config")
def test_weights_and_biases_is_told(probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = probe(log_with="wandb")
    assert absent.code == 2 and "pip install wandb" in absent.error["hint"]
    calls = counted(monkeypatch, accelerate.Accelerator, "init_trackers")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    file = tmp_path / "tracker.toml"
    file.write_text('[wandb]\nentity = "my team"\n[tensorboard]\nflush_secs = 1\n')
    more = {"log_tracker_config": file, "wandb_run_name": "the run", "wandb_api_key": "sekrit"}
    run = probe.trained(logging_dir=tmp_path / "logs", **more)
    expected = {"wandb": {"entity": "my team", "name": "the run"}, "tensorboard": {"flush_secs": 1}}
    assert calls[0][1]["init_kwargs"] == expected
    assert os.environ.pop("WANDB_API_KEY") == "sekrit"
    written = [path for path in run.out.rglob("*") if path.is_file() and b"sekrit" in path.read_bytes()]
    assert written == []


@shows("console_log_level", "console_log_simple")
def test_how_much_is_said(probe: Probe, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    probe.trained(console_log_level="ERROR")
    assert "step 1/1" not in capfd.readouterr().err
    probe.trained()
    assert "step 1/1" in capfd.readouterr().err
    probe.trained(console_log_simple=True)
    handlers = logging.getLogger("sd_scripts").handlers
    assert [type(handler) for handler in handlers] == [logging.StreamHandler]


# --- validation and the run itself -----------------------------------------------------------------------------------
@shows("validation_split", "validation_seed", "validate_every_n_steps", "max_validation_steps")
def test_pictures_are_set_aside_and_measured(probe: Probe) -> None:
    options = {"validation_split": 0.5, "max_train_steps": 2, "validate_every_n_steps": 1}
    run = probe.trained(**options)
    assert run.of("start")[0]["images"] == 2
    assert [event["step"] for event in run.of("validate")] == [1, 2]
    assert probe.base(max_train_steps=2).of("validate") == []
    losses = [event["loss"] for event in run.of("validate")]
    assert all(loss > 0 for loss in losses) and losses[0] != losses[1]
    other = probe.trained(**options, validation_seed=3)
    assert [event["loss"] for event in other.of("validate")] != losses
    fewer = probe.trained(**options, max_validation_steps=1)
    assert [event["loss"] for event in fewer.of("validate")] != losses
    assert fewer.losses == run.losses


@shows("validate_every_n_epochs")
def test_measuring_by_epochs(probe: Probe) -> None:
    options = {"validation_split": 0.25, "train_batch_size": 6, "max_validation_steps": 1}
    always = probe.trained(**options, max_train_epochs=2)
    assert [event["step"] for event in always.of("validate")] == [1, 2]
    both = probe.trained(**options, max_train_epochs=4, validate_every_n_epochs=4, validate_every_n_steps=3)
    assert [event["step"] for event in both.of("validate")] == [3, 4]


@shows("config_file", "output_config")
def test_options_from_a_file(probe: Probe, tmp_path: Path) -> None:
    file = tmp_path / "my run.toml"
    file.write_text("[any_name]\nmax_train_steps = 3\nnoise_offset = 0.1\n")
    run = probe.trained(config_file=file, max_train_steps=None)
    assert len(run.losses) == 3 and metadata(result(run))["ss_noise_offset"] == "0.1"
    with pytest.raises(SystemExit) as ended:
        probe(config_file=tmp_path / "new.toml", output_config=True, noise_offset=0.2)
    assert ended.value.code == 0
    assert tomllib.loads((tmp_path / "new.toml").read_text())["noise_offset"] == 0.2


@shows("job_dir", "plan_only")
def test_the_job_folder_and_the_plan(probe: Probe, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = probe.trained(job_dir=tmp_path / "job", plan_only=True)
    assert run.events == []
    kinds = [event["kind"] for event in events_of(tmp_path, "unused")] if (tmp_path / "unused.run").exists() else []
    assert kinds == []
    assert (tmp_path / "job" / "events.jsonl").is_file()
    plan = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert plan["total_steps"] == 1 and plan["images"] == 4
    assert not (run.out / "small.safetensors").exists()
