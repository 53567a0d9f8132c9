"""How a script ends when it is asked to."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from sd_scripts.tensorfile import atomic_path
from sd_scripts.tools.common import EXIT_INTERRUPTED, guarded


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal there")
def test_a_script_that_is_ended_leaves_nothing_half_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work(arguments: object) -> None:
        with atomic_path(tmp_path / "model.safetensors") as path:
            path.write_bytes(b"half of it")
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 5)

    assert guarded(work, [], "tool.py") == EXIT_INTERRUPTED
    assert not os.listdir(tmp_path)
    assert capsys.readouterr().err == "tool.py: interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is before
