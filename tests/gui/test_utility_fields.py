"""Every field of kohya_ss's utilities is on the page with its first value, and changes the command it stands for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kohya_gui import tools, tools_captions
from kohya_gui.form import Form
from kohya_gui.jobs import JobStore
from kohya_gui.localization import load
from kohya_gui.paths import Roots
from kohya_gui.services import Services
from kohya_gui.settings import Remembered
from kohya_gui.tabs.utilities import UtilitiesTab
from sd_scripts.schema.option import OptionField, section_fields
from sd_scripts.schema.tools_preparation import BalancingOptions, FolderPreparationOptions, ManualCaptionOptions

KOHYA: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "data" / "kohya_utilities.json").read_text(encoding="utf-8")
)
SECTIONS = {
    "dreambooth_folder_creation": FolderPreparationOptions,
    "dataset_balancing": BalancingOptions,
    "manual_caption": ManualCaptionOptions,
}
# first values that are another on purpose: a folder that must be given, sampling off where search is the first choice,
# a separator with its blank, the name of the model that an empty field stood for, and ONNX, without which there is no
# tagger
OTHERWISE = {"do_sample": False, "caption_separator": ", ", "model_id": "microsoft/git-large-textcaps"}
ALWAYS = {"onnx"}


def shown(name: str) -> tuple[Mapping[str, OptionField], dict[str, Any]]:
    if name in SECTIONS:
        known = {option.key: option for option in section_fields(SECTIONS[name])}
        return known, {key: option.default for key, option in known.items()}
    return tools.tool_fields(tools.TOOLS[name]), tools.start_values(tools.TOOLS[name])


@pytest.mark.parametrize("name", sorted(KOHYA))
def test_every_field_is_there_with_its_first_value(name: str) -> None:
    fields, start = shown(name)
    for known in KOHYA[name]:
        key = known["ours"]
        if key in ALWAYS:
            assert key in tools.TOOLS[name].sent
            continue
        assert key in fields, known
        wanted = OTHERWISE.get(key, known["default"])
        assert (start[key] if start[key] is not None else "") == wanted, key


def other_value(option: OptionField, value: Any, folder: Path) -> Any:
    """A value that is not the first one."""
    if option.type == "bool":
        return not value
    if option.type == "list[str]":
        return ["some", "words"]
    if option.kind in tools.PATHS:
        return str(folder / "other")
    if option.choices and not option.custom:
        return next(choice for choice in option.choices if choice != value)
    if option.type.startswith("int"):
        return int(value or 1) + (1 if int(value or 1) != option.maximum else -1)
    if option.type == "float":
        return round(float(value or 0) + 0.05, 3) if (option.maximum or 9) > float(value or 0) + 0.05 else 0.8
    if option.key.startswith("caption_ext"):
        return ".cap"
    return "some/other" if option.key == "repo_id" else "some, words"


@pytest.mark.parametrize("name", [tool.name for tool in tools_captions.TOOLS])
def test_every_field_changes_the_command(name: str, tmp_path: Path) -> None:
    tool = tools.TOOLS[name]
    fields, start = tools.tool_fields(tool), tools.start_values(tool)
    (tmp_path / "other").mkdir()
    base = {key: str(tmp_path) if value is None and fields[key].kind else value for key, value in start.items()}
    for key, option in fields.items():
        needed = {"find_text": "x"} if key == "replace_text" else {}
        switch = option.when
        if switch is not None and not switch.holds({**base, **needed}):
            needed = {part: not base[part] for part in sorted(switch.keys())}
        first = {**base, **needed}
        changed = {**first, key: other_value(option, base[key], tmp_path)}
        assert switch is None or switch.holds(changed), key
        before, after = (tools.build(tool.command, values, job_dir=tmp_path).argv for values in (first, changed))
        assert before != after, key
        text = str(changed[key])
        assert any(text in word for word in after) or option.type == "bool", key


def test_a_form_opens_again_with_what_it_said(tmp_path: Path) -> None:
    """What a job was made from fills the same form again, also what differs from the script's own first values."""
    words = load(None)
    services = Services(
        roots=Roots([tmp_path]),
        jobs=JobStore(tmp_path / "jobs"),
        words=words,
        home=tmp_path,
        remembered=Remembered(tmp_path / "remembered.json"),
    )
    for panel in UtilitiesTab(services).panels.values():
        form: Form = panel.fields.form
        start = tools.start_values(panel.tool)
        values = {
            key: other_value(option, start[key], tmp_path) for key, option in form.fields.items() if option.when is None
        }
        assert {key: form.collect(panel.opened(values)).values[key] for key in values} == values


def test_blanks_of_a_separator_count(tmp_path: Path) -> None:
    words = load(None)
    services = Services(
        roots=Roots([tmp_path]),
        jobs=JobStore(tmp_path / "jobs"),
        words=words,
        home=tmp_path,
        remembered=Remembered(tmp_path / "remembered.json"),
    )
    fields = UtilitiesTab(services).panels["wd14_caption"].fields
    assert fields.values(fields.form.fill({"caption_separator": "; "}))["caption_separator"] == "; "
    assert fields.values(fields.form.fill({}))["caption_separator"] == ", "
    assert "caption_separator" not in fields.marks(fields.collected(fields.form.fill({})))["changed"]


def test_what_undo_keeps_is_deleted_at_the_second_press(tmp_path: Path, photos: Path) -> None:
    roots = Roots([tmp_path, photos])
    services = Services(
        roots, JobStore(tmp_path / "jobs"), load("en"), tmp_path, Remembered(tmp_path / "memory.json"), foretell=False
    )
    panel = UtilitiesTab(services).folders
    given = {
        "util_instance_prompt_input": "ohwx",
        "util_class_prompt_input": "cat",
        "util_training_images_dir_input": str(photos / "2_photo"),
        "util_training_dir_output": str(tmp_path / "train"),
    }
    for _ in range(2):
        *_, (done, _) = panel._run(given)
        assert "What was done" in done
    said, _, asked = panel._clear("", given)
    assert "Press once more" in said and asked == str(tmp_path / "train")
    # another destination in between is not the one that was asked about
    assert "Press once more" in panel._clear(str(tmp_path / "other"), given)[0]
    said, _, asked = panel._clear(asked, given)
    assert "were freed" in said and asked == ""
    assert "Nothing is kept" in panel._clear(asked, given)[0]
    assert list((tmp_path / "train" / "img").rglob("*.png")) or list((tmp_path / "train" / "img").rglob("*.jpg"))
