"""Which kinds of data set a command takes: folders, metadata files, masks, control pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_kit import blueprint, save_photo

from sd_scripts.schema.errors import DataError, UserError

Folder = Callable[..., Path]
SIZES = [(64, 64), (96, 64)]


def write(tmp_path: Path, text: str, name: str = "data.toml") -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_masks_for_folders_and_subsets(folder: Folder, tmp_path: Path) -> None:
    folder("2_dog", SIZES)
    folder("1_dog", SIZES, root="reg")
    save_photo(tmp_path / "masks" / "2_dog" / "im00.png", (64, 64))
    made = blueprint(
        train_data_dir=tmp_path / "train", reg_data_dir=tmp_path / "reg", conditioning_data_dir=tmp_path / "masks"
    )
    dog, regular = made.datasets[0].subsets
    assert dog.conditioning_data_dir == tmp_path / "masks" / "2_dog"
    assert regular.conditioning_data_dir is None
    assert made.masks is True
    text = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{tmp_path}'\nconditioning_data_dir = '{tmp_path}'\n"
    made = blueprint(dataset_config=write(tmp_path, text), control_images=True)
    assert made.datasets[0].kind == "controlnet"
    assert made.masks is False
    with pytest.raises(DataError, match="'class_tokens'"):
        blueprint(dataset_config=write(tmp_path, text + "class_tokens = 'dog'\n"), control_images=True)
    made = blueprint(dataset_config=write(tmp_path, text + "class_tokens = 'dog'\n"))
    assert made.datasets[0].subsets[0].class_tokens == "dog"
    assert made.masks is True
    made = blueprint(
        train_data_dir=tmp_path / "train",
        conditioning_data_dir=tmp_path / "masks",
        command="train_network",
        control_images=True,
    )
    assert made.datasets[0].subsets[0].conditioning_data_dir is None
    assert "conditioning_data_dir has no effect without masked_loss" in made.warnings


def test_pictures_or_a_metadata_file_on_the_same_command(folder: Folder, tmp_path: Path) -> None:
    folder("3_dog", SIZES)
    meta = tmp_path / "meta.json"
    meta.write_text("{}")
    root = tmp_path / "train"
    for command in ("sdxl_train", "train_network", "train_textual_inversion"):
        assert blueprint(command=command, train_data_dir=root).datasets[0].kind == "dreambooth"
        made = blueprint(command=command, train_data_dir=root, in_json=meta, dataset_repeats=3)
        (subset,) = made.datasets[0].subsets
        assert (subset.kind, subset.num_repeats, subset.image_dir) == ("finetune", 3, root)
    assert blueprint(command="train_db", train_data_dir=root).datasets[0].subsets[0].num_repeats == 3
    with pytest.raises(UserError, match="does not train from a metadata file"):
        blueprint(command="train_db", train_data_dir=root, in_json=meta)
    assert blueprint(command="fine_tune", train_data_dir=root, in_json=meta).datasets[0].kind == "finetune"
    with pytest.raises(UserError, match="needs a metadata file") as caught:
        blueprint(command="fine_tune", train_data_dir=root)
    assert caught.value.key == "in_json"
    with pytest.raises(DataError, match=r"in_json .*gone\.json does not exist"):
        blueprint(command="fine_tune", train_data_dir=root, in_json=tmp_path / "gone.json")


def test_kinds_of_data_set_in_one_run(folder: Folder, tmp_path: Path) -> None:
    place = folder("a", SIZES)
    meta = tmp_path / "meta.json"
    meta.write_text("{}")
    subset = f"[[datasets.subsets]]\nimage_dir = '{place}'\n"
    masked = f"[[datasets]]\nbatch_size = 3\n{subset}conditioning_data_dir = '{place}'\n"
    text = (
        f"[[datasets]]\nresolution = 64\n{subset}[[datasets]]\nresolution = 96\nbatch_size = 2\n"
        f"[[datasets.subsets]]\nmetadata_file = '{meta}'\n"
    )
    made = blueprint(command="sdxl_train", dataset_config=write(tmp_path, text + masked))
    assert [(spec.kind, spec.batch_size) for spec in made.datasets] == [
        ("dreambooth", 1),
        ("finetune", 2),
        ("controlnet", 3),
    ]
    for command, control, place_, words in (
        ("sdxl_train", True, "datasets[2]", "does not train on conditioning_data_dir"),
        ("train_db", False, "datasets[1]", "does not train on metadata_file"),
        ("fine_tune", False, "datasets[0]", "does not train on folders of pictures"),
        ("train_controlnet", True, "datasets[0].subsets[0]", "conditioning_data_dir is missing"),
    ):
        with pytest.raises(DataError) as caught:
            blueprint(command=command, control_images=control, dataset_config=write(tmp_path, text + masked))
        assert str(caught.value).startswith(f"data.toml, {place_}: ")
        assert words in str(caught.value)


def test_control_pictures_from_the_command_line(folder: Folder, tmp_path: Path) -> None:
    pictures = folder("3_dog", SIZES)
    control = tmp_path / "control"
    for number, size in enumerate(SIZES):
        save_photo(control / f"im{number:02d}.png", size, number)
    values: dict[str, Any] = {"control_images": True, "requires_control": True}
    made = blueprint(train_data_dir=pictures, conditioning_data_dir=control, dataset_repeats=5, **values)
    (subset,) = made.datasets[0].subsets
    assert (subset.kind, subset.image_dir, subset.conditioning_data_dir) == ("controlnet", pictures, control)
    assert (subset.num_repeats, subset.class_tokens, subset.conditioning_must_match) == (1, None, True)
    for missing in ("train_data_dir", "conditioning_data_dir"):
        given = {"train_data_dir": pictures, "conditioning_data_dir": control}
        del given[missing]
        with pytest.raises(UserError, match=f"{missing} is not given") as caught:
            blueprint(**given, **values)
        assert caught.value.key == missing
    with pytest.raises(DataError, match="conditioning_data_dir .*nowhere is no folder"):
        blueprint(train_data_dir=pictures, conditioning_data_dir=tmp_path / "nowhere", **values)
    with pytest.raises(DataError, match="train_data_dir .*train holds no pictures.*in no sub-folder"):
        blueprint(train_data_dir=tmp_path / "train", conditioning_data_dir=control, **values)
    for key in ("in_json", "reg_data_dir"):
        with pytest.raises(UserError, match=f"{key} does not go with control pictures"):
            blueprint(train_data_dir=pictures, conditioning_data_dir=control, **values, **{key: pictures})
