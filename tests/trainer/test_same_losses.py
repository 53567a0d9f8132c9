"""The same pictures in every step give the same losses, whether one process goes through them or two share them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from all_trainers import TRAINERS, draw_all, options_of
from runs import ROOT, Finished, arguments, events_of, launch_environment, train_here

pytestmark = pytest.mark.slow

# Run by `accelerate launch` in two processes: all trainers one after the other, so that torch is imported once.
DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[2])
from runs import forget_accelerate
from sd_scripts.train import main

for command, argv in json.loads(open(sys.argv[1], encoding="utf-8").read()):
    forget_accelerate()
    code = main(command, argv)
    if code:
        sys.exit(code)
"""
# Dropouts and other draws, text encoders that stop or train, caches: what each trainer is run with here besides.
SHARED: dict[str, dict[str, Any]] = {
    "train_network": {
        "network_dropout": 0.1,
        "caption_dropout_rate": 0.2,
        "network_args": ["rank_dropout=0.1"],
        "cache_latents": False,
        "flip_aug": True,
        "noise_offset": 0.05,
        "ip_noise_gamma": 0.1,
    },
    "sdxl_train_network": {"network_train_unet_only": True, "cache_text_encoder_outputs_to_disk": True},
    "train_db": {"stop_text_encoder_training": 2},
    "sdxl_train": {"train_text_encoder": True},
}
SCHEDULE = {"max_train_steps": 3, "lr_warmup_steps": 2, "lr_scheduler": "constant_with_warmup"}


@pytest.fixture(scope="module")
def pictures(thumbs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures for every kind of data set."""
    return draw_all(thumbs, tmp_path_factory.mktemp("shared pictures"))


@pytest.fixture(scope="module")
def shared(
    quick_model: Callable[[str], Path], pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Finished]]:
    """What two processes made of each trainer, one picture each in every step."""
    root = tmp_path_factory.mktemp("two processes")
    jobs = []
    for command in TRAINERS:
        folder, options = options_of(command, pictures, **SCHEDULE, **SHARED.get(command, {}))
        model = quick_model(command)
        jobs.append((command, arguments(model, folder, root / command, command, **options)))
    (root / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    (root / "driver.py").write_text(DRIVER, encoding="utf-8")
    command_line = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        *("--num_cpu_threads_per_process", "1", str(root / "driver.py"), str(root / "jobs.json")),
        str(ROOT / "tests" / "trainer"),
    ]
    result = subprocess.run(
        command_line, capture_output=True, text=True, env=launch_environment(), timeout=900, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr[-4000:]
    yield {command: Finished(0, root / command, events_of(root / command), result.stderr) for command in TRAINERS}


@pytest.mark.parametrize("command", TRAINERS)
def test_two_processes_lose_as_one_does(
    command: str, shared: dict[str, Finished], quick_model: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    """One process adds up two pictures before each step, two processes take one each."""
    folder, options = options_of(command, pictures, **SCHEDULE, **SHARED.get(command, {}))
    model = quick_model(command)
    alone = train_here(model, folder, tmp_path / "out", command, **options, gradient_accumulation_steps=2)
    assert alone.code == 0, alone.of("error")
    together = shared[command]
    print(command, alone.losses, together.losses)
    assert together.of("start")[0]["processes"] == 2
    assert len(alone.losses) == 3
    assert together.losses == pytest.approx(alone.losses, rel=2e-5)
    assert {path.name for path in together.out.iterdir()} == {path.name for path in alone.out.iterdir()}
