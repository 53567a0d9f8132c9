"""A job store whose jobs run a small real process instead of the trainer."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from gui_bench import Bench

from kohya_gui.jobs import JobStore


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(JobStore(tmp_path / "jobs"), tmp_path)
    yield made
    for view in made.store.list():
        if view.running:
            made.store.kill(view.id, grace=0.1)
            made.wait(view.id, "stopped", "failed", "done")
