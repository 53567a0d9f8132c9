"""Weights and optimizer spread over two processes: losses, files and states are those of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ROOT, Finished, arguments, events_of, launch_environment, train_here
from safetensors.torch import load_file

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.training import TrainingOptions
from sd_scripts.trainer.accelerating import deepspeed_plugin

# accelerate knows FSDP for GPUs only. torch can do it on CPUs too, once it is told that these are the devices.
DRIVER = """
import json, os, sys
sys.path.insert(0, sys.argv[2])
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FullyShardedDataParallel
from runs import forget_accelerate
from sd_scripts.train import main

start = FullyShardedDataParallel.__init__
def on_cpu(self, *args, **kwargs):
    start(self, *args, **{**kwargs, "device_id": torch.device("cpu")})
FullyShardedDataParallel.__init__ = on_cpu
codes = []
for command, argv in json.loads(open(sys.argv[1], encoding="utf-8").read()):
    forget_accelerate()
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    codes.append(main(command, argv))
with open(sys.argv[1] + "." + os.environ["RANK"], "w", encoding="utf-8") as file:
    json.dump(codes, file)
"""
WHOLE: dict[str, Any] = {
    "save_model_as": "safetensors",
    "learning_rate": 1e-4,
    "max_train_steps": 4,
    "save_every_n_steps": 2,
    "save_state": True,
    "max_grad_norm": 0.5,
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "adafactor": ("train_db", {**WHOLE, "optimizer_type": "AdaFactor"}, "looks at whole weights"),
    "stop": ("train_db", {**WHOLE, "stop_text_encoder_training": 2}, "in the middle of a run"),
    "embedding": (
        "train_textual_inversion",
        {"token_string": "newword", "init_word": "cat", "use_object_template": True},
        "embeddings of a few words",
    ),
    "norms": ("train_network", {"scale_weight_norms": 1.0}, "scale_weight_norms"),
    "ranks": ("train_network", {"network_module": "networks.dylora"}, "would move all of them"),
}


@pytest.fixture(scope="module")
def alone(shallow_sd1: Path, thumbs: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run in one process, two pictures before each step."""
    out = tmp_path_factory.mktemp("alone")
    return train_here(shallow_sd1, thumbs, out, "train_db", **WHOLE, gradient_accumulation_steps=2)


@pytest.fixture(scope="module", params=["1", "2"])
def spread(
    request: pytest.FixtureRequest,
    alone: Finished,
    shallow_sd1: Path,
    thumbs: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Finished]]:
    """FSDP of both versions: a whole run, one resumed from it, one resumed from one process, and refused ones."""
    root = tmp_path_factory.mktemp(f"fsdp{request.param}")
    states = {"own": root / "whole" / "small-step00000002-state", "other": alone.out / "small-step00000002-state"}
    prompts = root / "prompts.txt"
    prompts.write_text("a cat --w 64 --h 64 --s 2 --d 1\na dog --w 64 --h 64 --s 2 --d 1\n")
    pictures = {"sample_prompts": prompts, "sample_every_n_steps": 2, "validation_split": 0.0}
    runs = {"whole": ("train_db", {**WHOLE, **pictures})}
    runs |= {name: ("train_db", {**WHOLE, "resume": state}) for name, state in states.items()}
    runs |= {name: (command, options) for name, (command, options, _) in REFUSED.items()}
    runs["network"] = ("train_network", {"max_train_steps": 2})
    jobs = [
        (command, arguments(shallow_sd1, thumbs, root / name, command, **options))
        for name, (command, options) in runs.items()
    ]
    (root / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    (root / "driver.py").write_text(DRIVER, encoding="utf-8")
    command_line = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", request.param),
        *("--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        *("--num_cpu_threads_per_process", "1", str(root / "driver.py"), str(root / "jobs.json")),
        str(ROOT / "tests" / "trainer"),
    ]
    result = subprocess.run(
        command_line, capture_output=True, text=True, env=launch_environment(), timeout=900, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr[-4000:]
    expected = [2 if name in REFUSED else 0 for name in runs]
    codes = [json.loads((root / f"jobs.json.{rank}").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert codes == [expected, expected], result.stderr[-2000:]
    yield {name: Finished(0, root / name, events_of(root / name), result.stderr) for name in runs}


@pytest.mark.slow
def test_spread_weights_learn_as_one_process_does(spread: dict[str, Finished], alone: Finished) -> None:
    whole = spread["whole"]
    assert len(alone.losses) == 4
    assert whole.losses == pytest.approx(alone.losses, rel=2e-5)
    norms = [event["grad_norm"] for event in whole.of("step")]
    assert norms == pytest.approx([event["grad_norm"] for event in alone.of("step")], rel=1e-3)
    assert min(norms) > WHOLE["max_grad_norm"], "every step clips"
    for name in ("small-step00000002.safetensors", "small.safetensors", "small-state/model.safetensors"):
        one, two = (load_file(str(run.out / name)) for run in (alone, whole))
        assert one.keys() == two.keys()
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=0, atol=3e-5, msg=key)
    assert [event["process"] for event in whole.of("sample")] == [0, 1, 0, 1]


@pytest.mark.slow
def test_a_spread_state_is_what_one_process_writes(spread: dict[str, Finished], alone: Finished) -> None:
    files = (run.out / "small-state" / "optimizer.bin" for run in (alone, spread["whole"]))
    one, two = (torch.load(file, weights_only=True) for file in files)
    assert one["param_groups"] == two["param_groups"]
    assert one["state"].keys() == two["state"].keys() and len(one["state"]) > 400
    for number, values in one["state"].items():
        for name, value in values.items():
            torch.testing.assert_close(two["state"][number][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own", "other"])
def test_a_spread_run_goes_on(name: str, spread: dict[str, Finished]) -> None:
    """From its own state, and from that of one process, which had gone through twice as many batches each."""
    resumed, whole = spread[name], spread["whole"]
    assert resumed.losses == pytest.approx(whole.losses[2:], rel=2e-5)
    one, two = (load_file(str(run.out / "small.safetensors")) for run in (resumed, whole))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=3e-5, msg=key)


@pytest.mark.slow
def test_what_cannot_be_spread_is_refused(spread: dict[str, Finished]) -> None:
    for name, (_, _, sentence) in REFUSED.items():
        assert sentence in spread[name].error["message"], name
    assert len(spread["network"].losses) == 2 and (spread["network"].out / "small.safetensors").is_file()


def test_fsdp_without_gpus_is_refused(
    tiny_sd1: Path, thumbs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate would leave it out without a word."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    run = train_here(tiny_sd1, thumbs, tmp_path, max_train_steps=1)
    assert run.code == 2 and "several GPUs only" in run.error["message"]


@pytest.fixture
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something that is called deepspeed: only its presence is looked for before accelerate is asked."""
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("_package")
def test_what_deepspeed_is_told() -> None:
    options = TrainingOptions(deepspeed=True, zero_stage=1, gradient_accumulation_steps=3)
    plugin = deepspeed_plugin(options, 2, "bf16", 0.5)
    assert plugin is not None
    told = plugin.deepspeed_config
    assert told["zero_optimization"]["stage"] == plugin.zero_stage == 1
    assert (told["train_micro_batch_size_per_gpu"], told["gradient_accumulation_steps"]) == (2, 3)
    assert told["gradient_clipping"] == 0.5
    assert "fp16" not in told


@pytest.mark.usefixtures("_package")
def test_deepspeed_asked_for_at_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stage comes from there, lengths and clipping from the trainer's own options."""
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 7}))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    plugin = deepspeed_plugin(TrainingOptions(), 2, "no", 1.0)
    assert plugin is not None and plugin.zero_stage == 3 and not plugin.zero3_init_flag
    assert plugin.deepspeed_config["train_micro_batch_size_per_gpu"] == 2
    assert plugin.deepspeed_config["gradient_clipping"] == 1.0


def test_deepspeed_is_off_unless_asked_for_and_named_where_missing() -> None:
    assert deepspeed_plugin(TrainingOptions(), 1, "no") is None
    with pytest.raises(UserError, match="package deepspeed"):
        deepspeed_plugin(TrainingOptions(deepspeed=True), 1, "no")
