"""Data scripts as jobs: real processes that caption real files, report, fail with a sentence, and can be taken back."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from gui_bench import Bench

from kohya_gui import command, job_plan, tools, tools_captions
from kohya_gui.cli import main as cli
from kohya_gui.command import Plan, Step
from kohya_gui.job_queue import has_room
from kohya_gui.jobs import Job
from kohya_gui.paths import Roots
from kohya_gui.prepare.undo import can_undo, undo_job, written
from sd_scripts.schema.errors import UserError


@pytest.fixture
def cats(tmp_path: Path, photos: Path) -> Path:
    """A folder of four photographs, three with captions."""
    folder = tmp_path / "my cats"
    shutil.copytree(photos / "2_photo", folder)
    (folder / "rocket.txt").unlink()
    return folder


def basic(bench: Bench, folder: Path, **values: Any) -> Job:
    chosen = {"images_dir": str(folder), **values}
    return bench.store.create(tools.build("tool:basic_caption", chosen), chosen, "captions")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_tool_runs_as_a_job_reports_and_is_taken_back(bench: Bench, cats: Path) -> None:
    before = snapshot(cats)
    job = basic(bench, cats, overwrite=True, prefix="ohwx,", find_text="a ", replace_text="one ")
    bench.store.tick()
    bench.wait(job.id, "done", "failed")
    view = bench.store.get(job.id)
    assert (view.state, view.tool, view.fraction) == ("done", True, 0.0), bench.store.log(job.id)
    assert view.end_reason == "4 captions written, 0 left as they were"
    assert {Path(made.path).name for made in view.files} == {f"{path.stem}.txt" for path in cats.glob("*.png")}
    assert (cats / "coffee.txt").read_text() == "ohwx, one cup of coffee on one wooden table, spoon"
    assert (cats / "rocket.txt").read_text() == "ohwx,"
    kinds = [event["kind"] for event in bench.store.events(job.id)[0]]
    assert kinds[0] == "start" and kinds[-1] == "end" and "phase" in kinds and kinds.count("save") == 4

    assert can_undo(view.folder)
    counts = undo_job(view.folder, Roots([cats]))
    assert counts == {"restored": 3, "removed": 1, "changed": 0}
    assert snapshot(cats) == before
    assert not can_undo(view.folder)
    with pytest.raises(UserError, match="already"):
        undo_job(view.folder, Roots([cats]))


def test_undo_leaves_what_was_changed_since_and_what_lies_elsewhere(bench: Bench, cats: Path, tmp_path: Path) -> None:
    job = basic(bench, cats, overwrite=True, caption_text="a cat")
    bench.store.tick()
    bench.wait(job.id, "done")
    (cats / "coffee.txt").write_text("by hand")
    with pytest.raises(UserError, match="outside"):
        undo_job(job.folder, Roots([tmp_path / "other"]))
    assert (cats / "chelsea.txt").read_text() == "a cat"
    assert undo_job(job.folder, Roots([cats])) == {"restored": 2, "removed": 1, "changed": 1}
    assert (cats / "coffee.txt").read_text() == "by hand"


def test_a_journal_with_half_a_line_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    lines = [{"path": str(target), "kept": "000000.txt"}, {"path": str(tmp_path / "b.txt"), "kept": None}]
    (tmp_path / "undo.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"path": "/x", "ke')
    assert list(written(tmp_path)) == [str(target), str(tmp_path / "b.txt")]


def test_a_captioner_without_its_model_says_so(bench: Bench, cats: Path) -> None:
    chosen = {"train_data_dir": str(cats), "caption_extension": ".txt", "model_id": "not_there"}
    job = bench.store.create(tools.build("tool:git_caption", chosen), chosen, "git")
    bench.store.tick()
    bench.wait(job.id, "failed", "done", seconds=60)
    view = bench.store.get(job.id)
    assert view.state == "failed" and view.error_key == "model_id"
    assert "There is no model at not_there" in view.error
    assert not (cats / "rocket.txt").exists()


def test_tools_on_files_need_no_gpu_and_do_not_wait_for_a_training(bench: Bench, cats: Path) -> None:
    training = bench.add("slow", "training")
    assert bench.store.tick() == [training.id]
    job = basic(bench, cats, caption_text="a cat")
    other = {"train_data_dir": str(bench.folder)}
    waits = bench.store.create(tools.build("tool:git_caption", other), other, "git")
    assert bench.store.tick() == [job.id]
    bench.wait(job.id, "done")
    assert bench.store.get(waits.id).state == "waiting"
    with pytest.raises(UserError, match="same GPU"):
        bench.store.start(waits.id)


def test_of_tools_without_gpu_a_few_run_at_once() -> None:
    assert has_room("none", ["all", "none"]) and not has_room("none", ["none", "none"])
    assert not has_room("0", ["none", "0"]) and has_room("0", ["none", "1"])


def test_two_tools_in_one_folder_are_refused(bench: Bench, cats: Path) -> None:
    bench.store.hold(True)
    basic(bench, cats, caption_text="a cat")
    with pytest.raises(UserError, match="works in") as refused:
        basic(bench, cats, caption_text="a dog")
    assert refused.value.key == "images_dir"


def test_a_killed_tool_leaves_whole_files_and_runs_again(bench: Bench, cats: Path) -> None:
    job = basic(bench, cats, caption_text="a cat", overwrite=True)
    spec = json.loads((job.folder / "spec.json").read_text())
    code = "import time; print('busy', flush=True); time.sleep(60)"
    spec["argv"] = [sys.executable, "-c", code]
    (job.folder / "spec.json").write_text(json.dumps(spec))
    bench.store._specs.clear()
    bench.store.tick()
    bench.until(lambda: "busy" in bench.store.log(job.id))
    assert bench.store.get(job.id).state == "working"
    bench.store.kill(job.id, grace=0.5)
    bench.wait(job.id, "stopped")
    again = bench.store.run_again(job.id)
    assert bench.store.values(again.id) == bench.store.values(job.id)
    bench.store.tick()
    bench.wait(again.id, "done")
    assert (cats / "rocket.txt").read_text() == "a cat"


# ---------------------------------------------------------------- programs before the training


def with_before(bench: Bench, behaviour: str, *steps: str) -> Job:
    """A training behind programs that are Python texts."""
    job = bench.add(behaviour, max_train_steps=3)
    spec = json.loads((job.folder / "spec.json").read_text())
    spec["before"] = [
        {"name": f"step {number}", "argv": [sys.executable, "-c", code]} for number, code in enumerate(steps, 1)
    ]
    (job.folder / "spec.json").write_text(json.dumps(spec))
    bench.store._specs.clear()
    return job


def test_programs_before_the_training_run_in_order(bench: Bench) -> None:
    job = with_before(bench, "fast", "print('one')", "print('two')")
    bench.store.tick()
    bench.wait(job.id, "done", "failed")
    lines = bench.store.log(job.id).splitlines()
    assert lines[:3] == ["one", "two", "step 1"]
    told = [event for event in bench.store.events(job.id)[0] if event["kind"] == "program"]
    assert [(event["name"], event["number"], event["of"]) for event in told] == [
        ("step 1", 1, 3), ("step 2", 2, 3), ("", 3, 3),
    ]  # fmt: skip


def test_a_failing_program_ends_the_job_with_its_name_code_and_cause(bench: Bench) -> None:
    job = with_before(bench, "fast", "pass", "raise SystemExit('the list is empty')", "print('never')")
    bench.store.tick()
    bench.wait(job.id, "failed")
    view = bench.store.get(job.id)
    assert view.error.startswith("step 2: ")
    exit_ = json.loads((job.folder / "exit.json").read_text())
    assert (exit_["code"], exit_["step"]) == (1, "step 2")
    assert "never" not in bench.store.log(job.id)


def test_a_resumed_training_does_not_list_and_encode_once_more(bench: Bench, cats: Path) -> None:
    values = {"train_data_dir": str(cats), "train_dir": str(bench.folder / "lists"), "caption_extension": ".txt"}
    values |= {"pretrained_model_name_or_path": "some/model", "output_dir": str(bench.folder / "out")}
    job = bench.store.create(command.build("fine_tune", values), values, "tuned")
    spec = bench.store.spec(job.id)
    assert [step["name"] for step in spec["before"]] == ["collect captions", "choose sizes and encode"]
    state = bench.folder / "out" / "tuned-00000004-state"
    state.mkdir(parents=True)
    saved = {"kind": "save", "path": str(state), "step": 4, "state": True, "checked": True}
    (job.folder / "events.jsonl").write_text(json.dumps(saved) + "\n")
    (job.folder / "exit.json").write_text('{"code": 1}')
    again = bench.store.resume(job.id)
    assert bench.store.values(again.id)["resume"] == str(state)
    assert bench.store.spec(again.id)["before"] == []


def test_the_phase_of_a_program_is_shown_and_a_stop_before_the_training_ends_it(bench: Bench) -> None:
    job = with_before(bench, "fast", "import time; time.sleep(1.5)")
    bench.store.tick()
    bench.until(lambda: bench.store.get(job.id).phase == "step 1")
    assert bench.store.get(job.id).state == "starting"
    bench.store.request(job.id, "stop")
    bench.wait(job.id, "stopped", "failed", "done")
    assert bench.store.get(job.id).state == "stopped"
    assert "step 3" not in bench.store.log(job.id)


def test_the_folder_of_the_job_is_given_to_data_scripts_only(tmp_path: Path) -> None:
    step = Step("lists", [sys.executable, "merge.py", "--full_path", "--", "in", "out"])
    plan = Plan("train_network", ["python", "train.py"], {}, "", {}, [], before=[step])
    before, last = job_plan.programs(plan, tmp_path)
    assert before[0]["argv"] == [sys.executable, "merge.py", "--job_dir", str(tmp_path), *step.argv[2:]]
    assert last == plan.argv


# ---------------------------------------------------------------- records


@pytest.mark.parametrize("name", [tool.name for tool in tools_captions.TOOLS])
def test_every_tool_is_a_complete_record(name: str, tmp_path: Path) -> None:
    tool = tools.TOOLS[name]
    fields = tools.tool_fields(tool)
    assert (command.PROJECT / tool.script).is_file()
    assert tool.folder in fields and set(tool.start) <= set(fields) | set(tool.sent)
    assert all(field.label and len(field.help) > 10 for field in fields.values())
    values = {**tools.start_values(tool), **{key: str(tmp_path) for key, f in fields.items() if f.kind == "folder"}}
    argv = tools.build(tool.command, values, job_dir=tmp_path).argv
    parser = _parser_of(tool)
    read = parser.parse_args(argv[4:])
    given = vars(read)
    for key in tool.start:
        assert str(given.get(key, fields[key].default)) == str(tool.start[key]), key


def _parser_of(tool: tools.Tool) -> Any:
    from sd_scripts.tools.common import build_parser

    return build_parser(tool.section, tool.name)


def test_texts_reach_the_script_as_they_are(tmp_path: Path) -> None:
    find = "a; rm -rf $HOME `x` \"'"
    values = {"images_dir": str(tmp_path), "prefix": "--overwrite", "find_text": find, "overwrite": True}
    argv = tools.build("tool:basic_caption", values).argv
    read = vars(_parser_of(tools.TOOLS["basic_caption"]).parse_args(argv[4:]))
    assert (read["prefix"], read["find_text"]) == ("--overwrite", find)


def test_paths_are_confined_and_hub_names_are_not(tmp_path: Path) -> None:
    tool = tools.TOOLS["git_caption"]
    (tmp_path / "in").mkdir()
    roots = Roots([tmp_path])
    made = tools.resolved(tool, {"train_data_dir": "in", "model_id": "microsoft/git-base"}, roots)
    assert made == {"train_data_dir": str(tmp_path / "in"), "model_id": "microsoft/git-base"}
    for name in ("..", "../x", "a/b/c", "a\\b/c", ".a/b"):
        with pytest.raises(UserError, match="no name on"):
            tools.resolved(tools.TOOLS["wd14_caption"], {"train_data_dir": "in", "repo_id": name}, roots)
    for wrong in ({"train_data_dir": "/etc"}, {"train_data_dir": "in", "model_id": "../up"}, {"train_data_dir": ""}):
        with pytest.raises(UserError) as refused:
            tools.resolved(tool, wrong, roots)
        assert refused.value.key in wrong


def test_the_terminal_lists_tools(bench: Bench, cats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = basic(bench, cats, caption_text="a cat")
    bench.store.tick()
    bench.wait(job.id, "done")
    assert cli(["jobs", "--jobs_dir", str(bench.store.root)]) == 0
    said = capsys.readouterr().out
    assert f"{job.id}  captions              done · 1 captions written, 3 left as they were" in said
