"""Running the real trainer: in this process where that is enough, through `accelerate launch` where it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState, PartialState

from sd_scripts.events import read_events
from sd_scripts.train import main

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = ROOT / "sd_scripts"
SCRIPT = SCRIPTS / "train_network.py"
_NETWORK: dict[str, Any] = {"network_module": "networks.lora", "network_dim": 4}


@dataclass
class Finished:
    """A run that has ended."""

    code: int
    out: Path
    events: list[dict[str, Any]]
    console: str = ""

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]

    @property
    def losses(self) -> list[float]:
        return [event["loss"] for event in self.of("step")]

    @property
    def error(self) -> dict[str, Any]:
        errors = self.of("error")
        assert errors, f"no error event; the events end with {self.events[-3:]}"
        return errors[-1]


def arguments(model: Path, data: Path, out: Path, command: str = "train_network", **options: Any) -> list[str]:
    """Flags of a small run; True is a bare flag, None or False leaves it out, a list gives several values."""
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": model,
        "train_data_dir": data,
        "caption_extension": ".txt",
        "output_dir": out,
        "output_name": "small",
        "resolution": "64",
        "enable_bucket": True,
        "min_bucket_reso": 64,
        "cache_latents": True,
        "max_train_steps": 4,
        "max_data_loader_n_workers": 0,
        **(_NETWORK if command.endswith("train_network") else {}),
        "learning_rate": 1e-3,
        "seed": 7,
        **options,
    }
    argv: list[str] = []
    for key, value in values.items():
        if value is None or value is False:
            continue
        argv.append(f"--{key}")
        if value is not True:
            argv += [str(item) for item in value] if isinstance(value, list) else [str(value)]
    return argv


def forget_accelerate() -> None:
    """accelerate keeps one state a process; a second run here must be able to choose another precision."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    PartialState._reset_state()


def events_of(out: Path, name: str = "small") -> list[dict[str, Any]]:
    return read_events(out / f"{name}.run" / "events.jsonl")[0]


def train_here(model: Path, data: Path, out: Path, command: str = "train_network", **options: Any) -> Finished:
    """Run in this process."""
    forget_accelerate()
    code = main(command, arguments(model, data, out, command, **options))
    name = options.get("output_name", "small")
    return Finished(code, out, events_of(out, name) if (out / f"{name}.run").exists() else [])


def launch_command(argv: Sequence[str], *, processes: int = 1, command: str = "train_network") -> list[str]:
    several = ["--multi_gpu"] if processes > 1 else []
    return [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *several,
        *("--num_processes", str(processes), "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"),
        *(("--main_process_port", "0") if processes > 1 else ()),
        str(SCRIPTS / f"{command}.py"),
        *argv,
    ]


def launch_environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONUTF8": "1"}


def launch(
    model: Path, data: Path, out: Path, *, processes: int = 1, command: str = "train_network", **options: Any
) -> Finished:
    """Run through `accelerate launch`, as people do."""
    argv = launch_command(arguments(model, data, out, command, **options), processes=processes, command=command)
    result = subprocess.run(
        argv, capture_output=True, text=True, env=launch_environment(), timeout=280, check=False, cwd=out.parent
    )
    return Finished(result.returncode, out, events_of(out, options.get("output_name", "small")), result.stderr)
