"""A last epoch that max_train_steps cuts short is shown, measured and counted like the others."""

from pathlib import Path

from effects import SMALL
from runs import train_here
from safetensors import safe_open


def test_a_short_last_epoch_has_its_pictures_and_its_number(tiny_sd1: Path, thumbs: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat --w 64 --h 64 --s 1 --d 1\n", encoding="utf-8")
    options = {
        **SMALL,
        "train_batch_size": 2,
        "max_train_steps": 3,
        "sample_prompts": tmp_path / "prompts.txt",
        "sample_every_n_epochs": 1,
        "save_every_n_epochs": 1,
        "save_state": True,
        "validation_split": 0.5,
    }
    finished = train_here(tiny_sd1, thumbs, tmp_path / "out", **options)
    assert finished.of("start")[0]["steps_per_epoch"] == 2  # two of four pictures, twice each
    assert [event["epoch"] for event in finished.of("sample")] == [1, 2]
    assert [event["step"] for event in finished.of("validate")] == [2, 3]
    weights = [Path(event["path"]).name for event in finished.of("save") if not event["state"]]
    assert weights == ["small-000001.safetensors", "small.safetensors"]
    with safe_open(tmp_path / "out" / "small.safetensors", "pt") as file:
        notes = file.metadata()
    assert (notes["ss_epoch"], notes["ss_num_epochs"], notes["ss_steps"]) == ("2", "2", "3")
    longer = {**options, "max_train_steps": 4, "sample_every_n_epochs": None}
    rest = train_here(tiny_sd1, thumbs, tmp_path / "rest", **longer, resume=tmp_path / "out" / "small-state")
    whole = train_here(tiny_sd1, thumbs, tmp_path / "whole", **longer)
    assert rest.losses == whole.losses[3:]
