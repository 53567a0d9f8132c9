"""A trainer without a model: reads its options and writes real events, as fast or slow as a test wants.

usage: fake_trainer.py BEHAVIOUR --config_file FILE     (the events go into the job folder that FILE names)
"""

import os
import signal
import sys
import time
import tomllib
from pathlib import Path

from sd_scripts.events import Control, EventWriter


def main(behaviour: str, config: Path) -> int:
    options = tomllib.loads(config.read_text(encoding="utf-8"))
    folder = Path(options["job_dir"])
    output = Path(options["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    first = int(Path(options["resume"]).name.split("-")[-2]) if "resume" in options else 0
    steps = int(options.get("max_train_steps", 1600))
    with EventWriter(folder / "events.jsonl") as events:
        events.write("start", command="train_network", total_steps=steps, total_epochs=1, output_name="x")
        events.write("phase", name="load model")
        if behaviour == "crash":
            print("Traceback (most recent call last):\nValueError: the picture is too blue", flush=True)
            return 1
        if behaviour == "refuse":
            events.write(
                "error", code="options", message="network_dim is 0.", hint="Give at least 1.", key="network_dim"
            )
            return 2
        if behaviour == "oom":
            os.kill(os.getpid(), signal.SIGKILL)
        events.write("phase", name="cache latents", done=3, of=10)
        stopped = run(events, Control(folder / "control"), output, first, steps, behaviour)
        step = stopped or steps
        if stopped:
            save(events, output, step, state=True)
        save(events, output, step, state=False, final=True, checked=behaviour != "unchecked")
        events.write("end", status="stopped" if stopped else "done", reason="", step=step)
    return 0


def run(events: EventWriter, control: Control, output: Path, first: int, steps: int, behaviour: str) -> int:
    pause = 0.05 if behaviour in ("slow", "stubborn") else 0.0
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for step in range(first + 1, steps + 1):
        time.sleep(pause)
        events.write(
            "step", step=step, of=steps, epoch=1, epochs=1, loss=1 / step, avg_loss=1 / step,
            lr={"unet": 1e-4}, speed=20.0, eta=(steps - step) / 20, memory=1000 + step,
        )  # fmt: skip
        print(f"step {step}", flush=True)
        asked = control.take()
        if "save" in asked:
            save(events, output, step, state=True)
        if "stop" in asked:
            return step
    return 0


def save(
    events: EventWriter, output: Path, step: int, *, state: bool, final: bool = False, checked: bool = True
) -> None:
    path = output / (f"x-{step:08d}-state" if state else "x.safetensors")
    if state:
        path.mkdir(exist_ok=True)
    else:
        path.write_bytes(b"weights")
    events.write("save", path=str(path), step=step, epoch=1, bytes=7, final=final, state=state, checked=checked)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[3])))
