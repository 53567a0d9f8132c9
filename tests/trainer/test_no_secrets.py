"""A real run that was given tokens: none of them stands in any file it leaves, nor in what it says."""

import subprocess
import sys
from pathlib import Path

from runs import ROOT, SCRIPT, arguments

KEY, TOKEN = "wandb-0123456789", "hf_0123456789"


def test_tokens_are_in_no_file_of_a_run(tiny_sd1: Path, thumbs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    words = arguments(
        tiny_sd1, thumbs, out, max_train_steps=1, save_state=True, log_with="tensorboard", logging_dir=out / "logs",
        log_config=True, wandb_api_key=KEY, huggingface_token=TOKEN, console_log_file=out / "console.log",
    )  # fmt: skip
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, cwd=ROOT, timeout=300)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said.decode("utf-8", "replace")[-2000:]
    files = [path for path in out.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".safetensors", ".json", ".jsonl", ".log"} <= kinds and any("tfevents" in path.name for path in files)
    for secret in (KEY.encode(), TOKEN.encode()):
        assert secret not in said
        assert [path.name for path in files if secret in path.read_bytes()] == []
