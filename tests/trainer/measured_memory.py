"""A program: run the real trainer for two steps on the CPU and print the memory it took on top of its loaded weights.

Linux tells the highest resident size since it was last reset; it is reset when everything is loaded and prepared.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.parse import parse
from sd_scripts.train import pair
from sd_scripts.trainer.accelerating import common_seed
from sd_scripts.trainer.resume import resume_trainer
from sd_scripts.trainer.session import Session
from sd_scripts.trainer.setup import plan_of, scan


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main(command: str, argv: list[str]) -> None:
    config = parse(command, argv)
    session = Session(config, *pair(COMMANDS[command], config))
    seed = common_seed(config.training, None)
    data = scan(session.config, session.method, seed)
    run = session._prepare(data, plan_of(config, data, 1), seed)
    trainer = resume_trainer(run, config)
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    trainer._epoch()
    print(json.dumps({"before": before, "taken": resident("VmHWM") - before}))


main(sys.argv[1], sys.argv[2:])
