"""The person's own presets, and the files opened last."""

import json
from pathlib import Path

import pytest

from kohya_gui import configs, recent, user_presets
from kohya_gui.paths import Roots
from kohya_gui.settings import Remembered
from kohya_gui.user_presets import TakenError
from sd_scripts.schema.errors import UserError

VALUES = {
    "network_dim": 24, "learning_rate": 3e-4, "optimizer_type": "AdamW", "lr_scheduler": "constant",
    "pretrained_model_name_or_path": "/models/a.safetensors", "train_data_dir": "/pictures", "output_name": "cat",
    "sample_prompt_text": "a cat", "huggingface_token": "hf_secret", "wandb_api_key": "w_secret", "caption_prefix": "",
}  # fmt: skip


def names(home: Path) -> list[str]:
    return [preset.name for preset in user_presets.listed(home, "lora")]


def test_a_recipe_holds_what_differs_and_neither_places_nor_secrets() -> None:
    assert user_presets.recipe("lora", VALUES) == {
        "network_dim": 24,
        "learning_rate": 3e-4,
        "optimizer_type": "AdamW",
    }
    whole = user_presets.recipe("lora", VALUES, places=True)
    assert whole["train_data_dir"] == "/pictures" and whole["output_name"] == "cat"
    assert not any("secret" in str(value) for value in whole.values())


def test_saved_and_listed_with_the_same_values(tmp_path: Path) -> None:
    values = user_presets.recipe("lora", VALUES)
    made = user_presets.save(tmp_path, "lora", "  My   cats ", "For\ncats.", values)
    assert made.path == tmp_path / "user_presets" / "lora" / "My cats.json"
    (found,) = user_presets.listed(tmp_path, "lora")
    assert (found.name, found.description, found.values) == ("My cats", "For cats.", values)
    assert json.loads(made.path.read_text())["tab"] == "lora"
    assert user_presets.listed(tmp_path, "finetune") == []
    assert [path.name for path in made.path.parent.iterdir()] == ["My cats.json"]


@pytest.mark.parametrize(
    "name",
    [
        "", "  ", "../evil", "a/b", "a\\b", "C:x", ".hidden", "nul", "COM1", "aux.txt", "a\0b", "a\u202eb", "x" * 81,
        "..", "what?", "a*", "end.", "语" * 70,
    ],
)  # fmt: skip
def test_names_that_are_no_plain_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError):
        user_presets.save(tmp_path, "lora", name, "", {})
    assert not (tmp_path / "user_presets").exists() or not any((tmp_path / "user_presets").rglob("*.json"))


def test_an_unknown_tab_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        user_presets.save(tmp_path, "../lora", "a", "", {})


def test_nothing_is_written_over_silently(tmp_path: Path) -> None:
    user_presets.save(tmp_path, "lora", "Cats", "", {"network_dim": 1})
    with pytest.raises(TakenError):
        user_presets.save(tmp_path, "lora", "cats", "", {"network_dim": 2})
    assert user_presets.listed(tmp_path, "lora")[0].values["network_dim"] == 1
    user_presets.save(tmp_path, "lora", "cats", "", {"network_dim": 2}, replace=True)
    assert names(tmp_path) == ["Cats"] and user_presets.listed(tmp_path, "lora")[0].values["network_dim"] == 2


def test_rename_delete_and_undo(tmp_path: Path) -> None:
    user_presets.save(tmp_path, "lora", "cats", "", {"network_dim": 1})
    user_presets.save(tmp_path, "lora", "dogs", "", {"network_dim": 2})
    with pytest.raises(TakenError):
        user_presets.rename(tmp_path, "lora", "cats", "Dogs")
    assert user_presets.rename(tmp_path, "lora", "cats", "Cats") == "Cats"
    assert user_presets.rename(tmp_path, "lora", "Cats", "birds") == "birds"
    assert names(tmp_path) == ["birds", "dogs"]
    user_presets.delete(tmp_path, "lora", "birds")
    assert names(tmp_path) == ["dogs"]
    user_presets.save(tmp_path, "lora", "birds", "", {"network_dim": 3})
    with pytest.raises(TakenError):
        user_presets.bring_back(tmp_path, "lora", "birds")
    user_presets.rename(tmp_path, "lora", "birds", "other")
    user_presets.bring_back(tmp_path, "lora", "birds")
    assert names(tmp_path) == ["birds", "dogs", "other"]
    for call in (user_presets.delete, user_presets.bring_back):
        with pytest.raises(UserError):
            call(tmp_path, "lora", "nobody")


def test_damaged_and_linked_files_are_left_out(tmp_path: Path) -> None:
    user_presets.save(tmp_path, "lora", "good", "", {"network_dim": 1})
    folder = user_presets.folder_of(tmp_path, "lora")
    (folder / "bad.json").write_text("{", encoding="utf-8")
    (tmp_path / "outside.json").write_text(configs.save_text("lora", {"network_dim": 9}), encoding="utf-8")
    (folder / "link.json").symlink_to(tmp_path / "outside.json")
    assert names(tmp_path) == ["good"]


def test_the_last_ten_files_of_each_tab(tmp_path: Path) -> None:
    remembered, roots = Remembered(tmp_path / "memory.json"), Roots([tmp_path / "open"])
    (tmp_path / "open").mkdir()
    files = [tmp_path / "open" / f"{number}.json" for number in range(12)]
    for path in files:
        path.write_text("{}", encoding="utf-8")
        recent.use(remembered, "lora", path)
    recent.use(remembered, "finetune", files[0])
    recent.use(remembered, "lora", files[5])
    shown = recent.listed(Remembered(tmp_path / "memory.json"), "lora", roots)
    assert shown == [files[5], *(files[number] for number in (11, 10, 9, 8, 7, 6, 4, 3, 2))]
    files[11].unlink()
    outside = tmp_path / "x.json"
    outside.write_text("{}", encoding="utf-8")
    recent.use(remembered, "lora", outside)
    assert recent.listed(remembered, "lora", roots)[:2] == [files[5], files[10]]
    assert recent.listed(remembered, "finetune", roots) == [files[0]]
    remembered.put("recent", {"lora": "nonsense"})
    assert recent.listed(remembered, "lora", roots) == []
