"""Without a seed one is drawn: the same in every process, and kept when a run is resumed."""

import socket
from pathlib import Path

import forked
import torch
from effects import SMALL
from runs import train_here
from safetensors.torch import load_file

SCRIPT = """
from sd_scripts.schema.parse import parse
from sd_scripts.trainer.accelerating import common_seed
argv = ["--pretrained_model_name_or_path", "m", "--train_data_dir", ".", "--resolution", "64"]
argv += ["--network_module", "networks.lora", "--output_dir", "out"]
print(common_seed(parse("train_network", argv).training))
"""


def seeds(folder: Path, processes: int) -> list[int]:
    """What each of several processes takes as its seed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = folder / "seed.py"
    script.write_text(SCRIPT, encoding="utf-8")
    outputs = [folder / f"{rank} of {processes}.log" for rank in range(processes)]
    started = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        several = {key: str(value) for key, value in place.items()} if processes > 1 else {}
        environment = {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", **several}
        started.append(forked.start(script, [], outputs[rank], environment=environment))
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * processes, [path.read_text() for path in outputs]
    return [int(path.read_text(encoding="utf-8").split()[-1]) for path in outputs]


def test_two_processes_share_a_drawn_seed(tmp_path: Path) -> None:
    first, second = seeds(tmp_path, 2)
    assert first == second
    assert seeds(tmp_path, 1) != [first]


def test_a_resumed_run_keeps_the_seed_that_was_drawn(tiny_sd1: Path, thumbs: Path, tmp_path: Path) -> None:
    options = {**SMALL, "seed": None, "max_train_steps": 3, "shuffle_caption": True}
    whole = train_here(tiny_sd1, thumbs, tmp_path / "whole", save_every_n_steps=1, save_state=True, **options)
    state = tmp_path / "whole" / "small-step00000001-state"
    rest = train_here(tiny_sd1, thumbs, tmp_path / "rest", resume=state, **options)
    assert rest.of("start")[0]["seed"] == whole.of("start")[0]["seed"]
    assert rest.losses == whole.losses[1:]
    one, two = (load_file(str(tmp_path / name / "small.safetensors")) for name in ("whole", "rest"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    other = train_here(tiny_sd1, thumbs, tmp_path / "other", **options)
    assert other.losses != whole.losses
