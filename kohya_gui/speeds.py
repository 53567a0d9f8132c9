"""How fast this machine trained before, so that a plan can tell how long the next run takes."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_gui import command, model_kind
from kohya_gui.settings import Remembered
from kohya_gui.supervisor import write_json
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import complete
from sd_scripts.schema.values import parse_resolution

MOST_SPEEDS = 500
_RECENT = 5
_SQUARE = 512 * 512
_DECIDING = (
    "mixed_precision", "gradient_checkpointing", "network_train_unet_only", "train_text_encoder", "LoRA_type",
    "fp8_base", "full_bf16", "full_fp16", "cache_latents", "num_processes", "gpu_ids",
)  # fmt: skip


@dataclass(frozen=True)
class Speed:
    """How a past job of this machine ran: what decides its speed, seconds a step, and seconds before the first step."""

    work: float
    traits: str
    seconds: float
    overhead: float


def traits_of(values: Mapping[str, Any], trainer: str = "train_network") -> tuple[float, str]:
    """Pictures times area in one step (one 512x512 picture is 1), and what else decides the speed of a run.

    Args:
        values: option key -> value; a missing key or None means the default, one that the trainer lacks is left out.
        trainer: the trainer that runs.
    """
    known = complete(trainer, {})
    full = known | {key: value for key, value in values.items() if value is not None and key in known}
    try:
        width, height = parse_resolution(str(full.get("resolution") or "512"))
    except UserError:
        width = height = 512
    work = width * height / _SQUARE * int(full["train_batch_size"]) * int(full["gradient_accumulation_steps"])
    model = os.path.basename(os.path.normpath(str(full.get("pretrained_model_name_or_path") or "")))
    return work, json.dumps([trainer, model, *(full.get(name) for name in _DECIDING)])


class SpeedHistory:
    """Speeds of this machine's finished jobs, in a file that outlives them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _stored(self) -> dict[str, Any]:
        return Remembered(self.path).all()

    def known(self) -> set[str]:
        """Ids of the jobs that are in the file."""
        return set(self._stored())

    def add(
        self, job_id: str, values: Mapping[str, Any], seconds: float, overhead: float, trainer: str = "train_network"
    ) -> None:
        """Remember a job's seconds a step and the seconds before its first step."""
        work, traits = traits_of(values, trainer)
        stored = self._stored()
        stored[job_id] = {"work": work, "traits": traits, "seconds": seconds, "overhead": overhead}
        kept = dict(list(stored.items())[-MOST_SPEEDS:])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, kept)

    def learn(self, job_id: str, spec: Mapping[str, Any], seconds: float, overhead: float) -> None:
        """Remember what a finished training says; `spec` is its spec.json. Other jobs teach nothing."""
        name, values = str(spec.get("command")), dict(spec.get("values") or {})
        if name in COMMANDS:
            self.add(job_id, values, seconds, overhead, command.trainer(name, model_kind.resolve(values)))

    def seconds(
        self, values: Mapping[str, Any], steps: int, trainer: str = "train_network"
    ) -> tuple[float, int] | None:
        """About how many seconds a run takes, and from how many past jobs that is known; None without a similar job."""
        work, traits = traits_of(values, trainer)
        similar = [item for item in self._speeds() if item.traits == traits and 0.5 <= work / max(item.work, 1e-9) <= 2]
        if not similar:
            return None
        recent = similar[-_RECENT:]
        each = sum(item.seconds / item.work for item in recent) / len(recent) * work
        return each * steps + sum(item.overhead for item in recent) / len(recent), len(recent)

    def _speeds(self) -> list[Speed]:
        found = []
        for item in self._stored().values():
            if isinstance(item, dict) and all(
                isinstance(item.get(k), int | float) for k in ("work", "seconds", "overhead")
            ):
                found.append(Speed(item["work"], str(item.get("traits")), item["seconds"], item["overhead"]))
        return found
