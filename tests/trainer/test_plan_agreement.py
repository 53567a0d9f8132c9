"""What the page foretells and what the trainer itself plans are the same, for every trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from all_trainers import TRAINERS, draw_all, options_of
from PIL import Image
from runs import arguments

from kohya_gui import checks
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.naming import Saves
from sd_scripts.schema.parse import parse
from sd_scripts.train import pair
from sd_scripts.trainer.facts import plan_event
from sd_scripts.trainer.memory_plan import plan_memory
from sd_scripts.trainer.setup import plan_of, scan

SAVES = {"max_train_epochs": 3, "save_every_n_epochs": 1, "save_state": True, "save_precision": "fp16"}
# one trainer for each way of training: sizes follow from a step without numbers, which takes a while
SIZED = (
    "train_network", "fine_tune", "train_textual_inversion_XTI", "train_controlnet", "sdxl_train_control_net_lllite",
)  # fmt: skip


@pytest.fixture(scope="module")
def drawn(thumbs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures for every trainer, and regularisation pictures of another shape."""
    folder = draw_all(thumbs, tmp_path_factory.mktemp("drawn"))
    (folder / "regular" / "1_thing").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (64, 128)).save(folder / "regular" / "1_thing" / f"{number}.png")
    return folder


def planned(command: str, argv: list[str], sized: bool) -> dict[str, Any]:
    """What the trainer plans: its start event, and the files, with their sizes where asked for."""
    config = parse(command, argv)
    family, method = pair(COMMANDS[command], config)
    found = scan(config, method, 7)
    plan = plan_of(config, found, 1)
    facts = plan_event(config, found.train, plan)
    if sized:
        return facts | plan_memory(config, family, method, found.train, plan, "cpu")
    saves = Saves.of(config.saving, plan, method.file_format, method.default_name)
    names = [(made.file.name, made.state.name) for made in saves.moments(plan)]
    return facts | {"files": [{"name": name, "bytes": None} for both in names for name in both]}


def foretold(command: str, argv: list[str]) -> checks.PlanView:
    """What the page says about the same options."""
    config = parse(command, argv)
    values = config.values()
    return checks.plan(command, {key: values[key] for key in config.given})


@pytest.mark.parametrize("command", TRAINERS)
def test_page_and_trainer_agree(command: str, drawn: Path, tiny_sd1: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"max_train_steps": None, "train_batch_size": 2, "validation_split": 0.25, **SAVES}
    if "reg_data_dir" in COMMANDS[command].sections["dataset"].__dataclass_fields__ and command != "fine_tune":
        more |= {} if "conditioning_data_dir" in TRAINERS[command] else {"reg_data_dir": drawn / "regular"}
    folder, options = options_of(command, drawn, **more)
    model = tiny_sdxl if COMMANDS[command].family == "sdxl" else tiny_sd1
    argv = arguments(model, folder, tmp_path / "out", command, **options)
    trainer, page = planned(command, argv, command in SIZED), foretold(command, argv)
    assert page.can_start, page.problems
    assert page.dataset is not None and page.dataset.aside == 1 and page.images == 3
    assert (page.steps, page.epochs) == (trainer["total_steps"], trainer["total_epochs"])
    assert page.images + page.dataset.regular == trainer["images"]
    assert page.dataset.shown == trainer["repeats_images"]
    assert page.buckets == {tuple(bucket["size"]): bucket["count"] for bucket in trainer["buckets"]}
    assert [item.name for item in page.writes] == [file["name"] for file in trainer["files"]]
    for item, file in zip(page.writes, trainer["files"]):
        # in tiny files names and shapes take much room, in tiny states the counters of the optimizer too
        near = 0.35 if item.state else 0.02
        assert item.size and file["bytes"] in (None, pytest.approx(item.size, rel=near, abs=150_000)), (item, file)


def test_of_kept_files_the_page_lists_what_is_left(drawn: Path, tiny_sd1: Path, tmp_path: Path) -> None:
    kept = {"max_train_epochs": 7, "save_every_n_epochs": 2, "save_last_n_epochs": 2, "save_every_n_steps": 5}
    folder, options = options_of("train_network", drawn, max_train_steps=None, save_last_n_steps=10, **kept)
    argv = arguments(tiny_sd1, folder, tmp_path / "out", **options)
    names = [file["name"] for file in planned("train_network", argv, False)["files"]]
    left = [item.name for item in foretold("train_network", argv).writes]
    assert left == [name for name in names if name in left] and len(left) < len(names)
    assert [name for name in left if "step" not in name] == [
        "small-000004.safetensors", "small-000006.safetensors", "small.safetensors",
    ]  # fmt: skip
    assert [name for name in left if "step" in name] == [f"small-step{step:08d}.safetensors" for step in (45, 50, 55)]
