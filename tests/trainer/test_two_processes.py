"""Two processes on one machine: own pictures and own noise for each, one set of weights for both."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from effects import SMALL
from runs import ROOT, arguments, launch_environment

# Runs in each process: the gradients with and without exchange, from the very same draws.
SCRIPT = """
import sys
import torch
from accelerate.utils import gather_object
from sd_scripts.schema.parse import parse
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.train import pair
from sd_scripts.trainer.session import Session
from sd_scripts.trainer.setup import plan_of, scan
from sd_scripts.training import rng

config = parse("train_network", sys.argv[1:])
session = Session(config, *pair(COMMANDS["train_network"], config))
data = scan(config, session.method, 7)
run = session._prepare(data, plan_of(config, data, 2), 7)
run.method.on_epoch_start()
batch = next(run.loader.epoch(1))

def gradients():
    rng.seed_batch(7, 0, run.accelerator.process_index)
    run.optimizer.zero_grad(set_to_none=True)
    prediction, sample = run.predictor(run.maths.latents(batch), batch, run.maths.draw)
    run.accelerator.backward(run.maths.losses(prediction, sample, batch).mean())
    return torch.cat([p.grad.flatten() for p in run.method.trainable_parameters()]), sample.noise

def weights():
    return torch.cat([p.detach().flatten() for p in run.method.trainable_parameters()])

before = gather_object([weights()])
with run.accelerator.no_sync(run.predictor):
    own, noise = gradients()
shared, _ = gradients()
run.optimizer.step()
alone, together, after = gather_object([own]), gather_object([shared]), gather_object([weights()])
noises, places = gather_object([noise]), gather_object([batch.index])
if run.accelerator.is_main_process:
    assert torch.equal(*before), "the processes start from different weights"
    assert not torch.allclose(*alone), "both processes learn from the same"
    assert not torch.equal(*noises), "both processes draw the same noise"
    assert places[0] != places[1], places
    assert torch.equal(*together), "the gradients differ"
    torch.testing.assert_close(together[0], (alone[0] + alone[1]) / 2, rtol=1e-5, atol=1e-9)
    assert torch.equal(*after), "the weights differ after a step"
    assert not torch.equal(after[0], before[0])
    print("agreed")
"""


def test_gradients_are_averaged_over_own_shares(tiny_sd1: Path, thumbs: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    argv = arguments(tiny_sd1, thumbs, tmp_path / "out", **SMALL)
    started = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **launch_environment(), **place}
        command = [sys.executable, "-c", SCRIPT, *argv]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=pipe, stderr=pipe, text=True))
    said = [process.communicate(timeout=240) for process in started]
    assert said[0][0].strip().endswith("agreed"), said[0][1][-3000:]
    assert [process.returncode for process in started] == [0, 0]
