"""A job store whose jobs run a small real process instead of the trainer."""

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kohya_gui import command
from kohya_gui.jobs import Job, JobStore
from kohya_gui.supervisor import read_json, write_json

FAKE = Path(__file__).with_name("fake_trainer.py")


@dataclasses.dataclass
class Bench:
    """A store, and ways to put jobs into it and to wait for them."""

    store: JobStore
    folder: Path

    def add(self, behaviour: str, name: str = "cat", **values: Any) -> Job:
        """A waiting job whose command is the fake trainer."""
        chosen = {"output_dir": str(self.folder / "out"), "max_train_steps": 200, **values}
        plan = command.build("train_network", chosen)
        return self.with_fake(self.store.create(plan, chosen, name), behaviour)

    def with_fake(self, job: Job, behaviour: str) -> Job:
        """The same job, but its command is the fake trainer."""
        spec = read_json(job.folder / "spec.json")
        assert spec is not None
        spec["argv"] = [sys.executable, str(FAKE), behaviour, *spec["argv"][-2:]]
        write_json(job.folder / "spec.json", spec)
        self.store._specs.pop(job.id, None)
        return job

    def wait(self, job_id: str, *states: str, seconds: float = 20.0) -> str:
        """Wait for one of the states."""
        return self.until(
            lambda: self.store.get(job_id).state if self.store.get(job_id).state in states else "", seconds
        )

    @staticmethod
    def until(found: Callable[[], Any], seconds: float = 20.0) -> Any:
        """Wait until something is true, and return it."""
        end = time.monotonic() + seconds
        while not (value := found()):
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.03)
        return value
