"""Training states: exact, whole or absent, readable by accelerate, and clear about what does not fit."""

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from small_job import Job
from torch import nn

from sd_scripts.schema.errors import UserError
from sd_scripts.tensorfile import write_torch
from sd_scripts.training import state_files
from sd_scripts.training.checkpoint import (
    StateParts,
    latest_state,
    point_to,
    pointer_path,
    resolve_resume,
    save_state,
)
from sd_scripts.training.loss import LossRecorder
from sd_scripts.training.rng import seed_everything

_FILES = ("model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl")


@pytest.fixture
def job() -> Job:
    return Job()


@pytest.fixture
def _own_accelerate() -> Iterator[None]:
    """accelerate keeps one state a process; other tests must not inherit this one's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def _equal(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ({}, torch.float32),
        ({"optimizer_type": "AdamW8bit"}, torch.float32),
        ({"optimizer_type": "Prodigy", "learning_rate": 1.0}, torch.float32),
        ({"optimizer_type": "AdamWScheduleFree", "lr_scheduler": "constant"}, torch.float32),
        ({"optimizer_type": "Adafactor"}, torch.float32),
        ({"optimizer_type": "Adafactor"}, torch.bfloat16),
        ({"optimizer_type": "AdamW"}, torch.bfloat16),
        ({"optimizer_type": "prodigyplus.ProdigyPlusScheduleFree", "learning_rate": 1.0}, torch.bfloat16),
    ],
    ids=str,
)
def test_goes_on_bit_for_bit(given: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    whole = Job(dtype=dtype, **given)
    whole.train(7)
    whole.save(tmp_path / "my-state")
    wanted = whole.train(6)
    other = Job(seed=99, dtype=dtype, **given)
    other.train(2)
    loaded = other.load(tmp_path / "my-state")
    assert loaded.exact and not loaded.notices and loaded.step == 7
    assert loaded.progress is not None and (loaded.progress["epoch"], loaded.progress["batch"]) == (1, 3)
    assert other.train(6) == wanted
    assert _equal(whole.module, other.module)
    assert whole.created.learning_rates() == other.created.learning_rates()


def test_saving_changes_nothing(tmp_path: Path) -> None:
    quiet, saving = Job(), Job()
    seed_everything(3)
    wanted = quiet.train(5)
    seed_everything(3)
    found = []
    for number in range(5):
        found += saving.train(1)
        saving.save(tmp_path / f"s{number}-state")
    assert found == wanted


def test_a_killed_process_goes_on_exactly(tmp_path: Path) -> None:
    """Kill -9 between two states; going on from the newest one ends with the weights of the uninterrupted run."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys
            from pathlib import Path
            import torch
            from small_job import Job
            from sd_scripts.training.checkpoint import point_to
            torch.set_num_threads(1)
            job, folder = Job(), Path(sys.argv[1])
            while True:
                job.train(1)
                if job.step == 11:
                    os.kill(os.getpid(), signal.SIGKILL)
                if job.step % 4 == 0:
                    point_to(job.save(folder / f"my-step{job.step:08d}-state"), "my", job.step)
            """
        ),
        encoding="utf-8",
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    killed = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env={**os.environ, "PYTHONPATH": path}, timeout=120
    )
    assert killed.returncode == -9
    newest = latest_state(tmp_path, "my")
    assert newest == tmp_path / "my-step00000008-state"
    resumed, whole = Job(seed=5), Job()
    losses = whole.train(12)
    resumed.load(newest)
    assert resumed.train(4) == losses[8:]
    assert _equal(whole.module, resumed.module)


def test_names_and_content_of_the_folder(job: Job, tmp_path: Path) -> None:
    job.train(2)
    options = {"learning_rate": 1e-2, "wandb_api_key": "hush", "huggingface_token": "hush", "betas": (1, 2)}
    folder = job.save(tmp_path / "my-000003-state", options=options)
    names = {
        "model.safetensors",
        "optimizer.bin",
        "scheduler.bin",
        "random_states_0.pkl",
        "train_state.json",
        "state.json",
    }
    assert {path.name for path in folder.iterdir()} == names
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    short = json.loads((folder / "train_state.json").read_text())
    assert short == {"current_epoch": 1, "current_step": 2}
    text = (folder / "state.json").read_text()
    assert "hush" not in text and json.loads(text)["options"] == {"learning_rate": 1e-2, "betas": [1, 2]}


def test_an_existing_state_is_replaced_whole(job: Job, tmp_path: Path) -> None:
    job.train(1)
    folder = job.save(tmp_path / "my-state")
    (folder / "stray.txt").write_text("x")
    job.train(1)
    job.save(folder)
    assert not (folder / "stray.txt").exists() and [path.name for path in tmp_path.iterdir()] == ["my-state"]
    assert job.load(folder).step == 2


class _Full:
    """A scheduler whose state cannot be written, as when the disk is full."""

    def state_dict(self) -> dict[str, Any]:
        raise OSError(28, "No space left on device")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("never read")


def test_a_failing_save_leaves_the_older_state(job: Job, tmp_path: Path) -> None:
    job.train(1)
    folder = job.save(tmp_path / "my-state")
    broken = StateParts(job.module, job.created, _Full())
    with pytest.raises(OSError, match="No space left"):
        save_state(folder, broken, {"step": 9, "epoch": 0})
    assert [path.name for path in tmp_path.iterdir()] == ["my-state"]
    assert job.load(folder).step == 1


def test_a_death_between_the_two_renames_loses_nothing(job: Job, tmp_path: Path) -> None:
    job.train(1)
    folder = job.save(tmp_path / "my-state")
    folder.rename(tmp_path / ".my-state.old")
    assert job.load(folder).step == 1


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl"])
@pytest.mark.parametrize(
    ("damage", "says"), [(_cut, "bytes instead of"), (_flip, "was changed"), (os.remove, "missing")]
)
def test_damage_is_named(job: Job, tmp_path: Path, name: str, damage: Callable[[Path], None], says: str) -> None:
    job.train(1)
    job.save(tmp_path / "my-000001-state")
    folder = job.save(tmp_path / "my-000002-state")
    damage(folder / name)
    with pytest.raises(UserError) as caught:
        job.load(folder)
    text = str(caught.value)
    assert says in text and name in text and "my-000001-state" in text and caught.value.key == "resume"


def test_what_is_no_state(job: Job, tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=r"does not exist|holds no training state"):
            job.load(folder)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(Path.cwd() / "evil"),))


def test_code_in_a_foreign_state_never_runs(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job.train(1)
    folder = job.save(tmp_path / "my-state")
    (folder / "state.json").unlink()
    torch.save({"random_state": _Evil()}, folder / "random_states_0.pkl")
    loaded = job.load(folder)
    assert {notice.code for notice in loaded.notices} == {"state_foreign"}
    torch.save(_Evil(), folder / "optimizer.bin")
    with pytest.raises(UserError, match="cannot be read"):
        job.load(folder)
    assert not (tmp_path / "evil").exists()


def test_another_network_optimizer_or_scheduler_is_refused(job: Job, tmp_path: Path) -> None:
    job.train(1)
    folder = job.save(tmp_path / "my-state")
    with pytest.raises(UserError, match=r"torch.optim.adamw.AdamW, but now it is lion"):
        Job(optimizer_type="Lion").load(folder)
    with pytest.raises(UserError, match="scheduler"):
        Job(lr_scheduler_type="CosineAnnealingLR", lr_scheduler_args=["T_max=5"]).load(folder)
    fewer = Job()
    fewer.created.group_names[1] = "unet_2"
    with pytest.raises(UserError, match=r"trains unet \(2\), textencoder \(2\)"):
        fewer.load(folder)
    wider, longer = Job(), Job()
    wider.module[0] = nn.Linear(8, 32)
    with pytest.raises(UserError, match=r"\(64, 8\) instead of \(32, 8\)"):
        wider.load(folder)
    longer.module.add_module("more", nn.Linear(2, 2))
    with pytest.raises(UserError, match="lacks more.bias"):
        longer.load(folder)


def test_changed_settings_are_told(job: Job, tmp_path: Path) -> None:
    job.train(1)
    options = {"learning_rate": 1e-4, "seed": 1, "output_name": "a", "max_train_epochs": 3}
    folder = job.save(tmp_path / "my-state", options=options, facts={"images": 10})
    same = job.load(folder, options={**options, "output_name": "b", "max_train_epochs": 9}, facts={"images": 10})
    assert same.exact
    other = job.load(folder, options={**options, "seed": 2}, facts={"images": 11}, num_processes=2)
    assert not other.exact
    assert all(text in other.notices[0].message for text in ("seed was 1, now 2", "images was 10, now 11", "processes"))


class _Loader:
    def __init__(self) -> None:
        self.state: dict[str, Any] = {"epoch": 2, "position": 5}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        return [] if state == self.state else ["the seed was another"]


def test_the_loader_has_its_say(job: Job, tmp_path: Path) -> None:
    job.parts.loader = _Loader()
    folder = job.save(tmp_path / "my-state")
    assert job.load(folder).exact
    job.parts.loader.state = {"epoch": 1}
    assert [notice.message for notice in job.load(folder).notices] == ["The seed was another."]


def test_scaler_state_is_kept(job: Job, tmp_path: Path) -> None:
    job.parts.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    job.parts.scaler.scale(torch.ones(1))
    folder = job.save(tmp_path / "my-state")
    other = Job()
    other.parts.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    other.parts.scaler.scale(torch.ones(1))
    other.load(folder)
    assert other.parts.scaler.get_scale() == 8.0


def test_two_real_processes(tmp_path: Path) -> None:
    """Over gloo: the first process writes for both, the other needs no folder; fused backward is refused there."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path
            import torch
            from torch import distributed
            from small_job import Job
            from sd_scripts.schema.errors import UserError
            from sd_scripts.schema.optimizer import OptimizerOptions
            from sd_scripts.training.fused import check_fused
            from sd_scripts.training.rng import seed_everything
            torch.set_num_threads(1)
            place, rank = Path(sys.argv[1]), int(sys.argv[2])
            distributed.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
            job = Job()
            seed_everything(3 + rank)
            wanted = torch.get_rng_state().tolist()

            def gather(own):
                found = [None, None]
                distributed.all_gather_object(found, own)
                return found

            mine = place / str(rank) / "my-state"
            job.save(mine, process_index=rank, num_processes=2, gather=gather)
            distributed.barrier()
            assert mine.exists() == (rank == 0)
            state = place / "0" / "my-state"
            noted = torch.load(state / f"random_states_{rank}.pkl", weights_only=True)
            assert noted["torch_manual_seed"].tolist() == wanted
            assert job.load(state, num_processes=2).exact
            try:
                check_fused(OptimizerOptions(fused_backward_pass=True), job.created, 1, False)
            except UserError as error:
                (place / f"{rank}.txt").write_text(str(error))
            distributed.barrier()
            """
        ),
        encoding="utf-8",
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(script), str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert all("one process only" in (tmp_path / f"{rank}.txt").read_text() for rank in range(2))


def test_one_failing_process_holds_no_other_up(tmp_path: Path) -> None:
    """The second process cannot write its random streams: both come back, with an error, and no folder appears."""
    jobs, wall, folder = (Job(), Job()), threading.Barrier(2, timeout=30), tmp_path / "my-state"
    about: dict[str, Any] = {}
    outcomes: dict[int, str] = {}

    def run(index: int) -> None:
        names = [state_files.random_states_name(number) for number in range(2)]
        try:
            with state_files.writing(folder, index == 0, wall.wait, about, names) as inside:
                if index == 1:
                    raise OSError(28, "No space left on device")
                write_torch(inside / names[0], jobs[index].created.optimizer.state_dict())
            outcomes[index] = "written"
        except OSError as error:
            outcomes[index] = str(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "random_states_1.pkl" in outcomes[0] and "No space left" in outcomes[1]
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_saving_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        state_files.writing(tmp_path / "my-state", True, lambda: None, {}, []) as inside,
    ):
        (inside / "half").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_accelerate_opens_our_state(job: Job, tmp_path: Path, _own_accelerate: None) -> None:
    job.train(3)
    folder = job.save(tmp_path / "my-state")
    following = torch.rand(1).item(), random.random(), float(np.random.rand())
    other = Job(seed=4)
    accelerator = Accelerator(cpu=True)
    module, optimizer, scheduler = accelerator.prepare(other.module, other.created.optimizer, other.scheduler)
    accelerator.load_state(str(folder))
    assert _equal(job.module, module)
    assert scheduler.get_last_lr() == job.scheduler.get_last_lr()
    first = next(iter(job.created.optimizer.state.values()))["exp_avg"]
    assert torch.equal(first, next(iter(optimizer.optimizer.state.values()))["exp_avg"])
    assert (torch.rand(1).item(), random.random(), float(np.random.rand())) == following


def test_we_open_a_state_of_accelerate(job: Job, tmp_path: Path, _own_accelerate: None) -> None:
    accelerator = Accelerator(cpu=True)
    job.train(3)
    accelerator.prepare(job.module, job.created.optimizer, job.scheduler)
    folder = tmp_path / "at-step00000003-state"
    accelerator.save_state(str(folder))
    (folder / "train_state.json").write_text('{"current_epoch": 1, "current_step": 3}')
    seed_everything(21)
    wanted = job.train(4)
    other = Job(seed=8)
    loaded = other.load(folder)
    assert loaded.step == 3 and loaded.progress is None and not loaded.exact
    assert [notice.code for notice in loaded.notices] == ["state_foreign"]
    other.recorder = LossRecorder()
    seed_everything(21)
    other.train(4)
    assert wanted and _equal(job.module, other.module)


def test_the_older_weight_file_of_accelerate(job: Job, tmp_path: Path) -> None:
    job.train(1)
    folder = job.save(tmp_path / "my-state")
    (folder / "state.json").unlink()
    (folder / "model.safetensors").unlink()
    torch.save(job.module.state_dict(), folder / "pytorch_model.bin")
    other = Job(seed=2)
    other.load(folder)
    assert _equal(job.module, other.module)


def test_the_newest_state(job: Job, tmp_path: Path) -> None:
    assert latest_state(tmp_path, "my") is None
    with pytest.raises(UserError, match="no saved state of 'my'"):
        resolve_resume("latest", str(tmp_path), "my")
    for steps in (2, 3):
        job.train(steps)
        job.save(tmp_path / f"my-step{job.step:08d}-state")
    Job().save(tmp_path / "other-state")
    newest = tmp_path / "my-step00000005-state"
    assert latest_state(tmp_path, "my") == newest == resolve_resume("latest", str(tmp_path), "my")
    point_to(tmp_path / "my-step00000002-state", "my", 2)
    assert latest_state(tmp_path, "my") == tmp_path / "my-step00000002-state"
    shutil.rmtree(tmp_path / "my-step00000002-state")
    assert latest_state(tmp_path, "my") == newest
    assert pointer_path(tmp_path, "my").is_file()
    assert resolve_resume(str(newest), None, None) == newest


def test_processes_draw_different_numbers() -> None:
    seed_everything(5)
    first = torch.rand(1).item()
    seed_everything(6)
    assert torch.rand(1).item() != first
    torch.manual_seed(5)
    assert torch.rand(1).item() == first


def test_files_are_named_as_accelerate_names_them() -> None:
    from accelerate.utils import OPTIMIZER_NAME, SAFE_WEIGHTS_NAME, SCALER_NAME, SCHEDULER_NAME

    assert state_files.WEIGHTS == SAFE_WEIGHTS_NAME and state_files.SCALER == SCALER_NAME
    assert (f"{OPTIMIZER_NAME}.bin", f"{SCHEDULER_NAME}.bin") == (state_files.OPTIMIZER, state_files.SCHEDULER)
