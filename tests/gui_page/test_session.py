"""Calm words for fields nobody has touched, and the form a browser keeps."""

import json

import pytest

from kohya_gui.checks import PlanView
from kohya_gui.dataset_view import Problem
from kohya_gui.form import Form
from kohya_gui.layout import complete
from kohya_gui.layouts import LAYOUTS
from kohya_gui.localization import Words
from kohya_gui.tabs import plan, session
from kohya_gui.tabs.session import Manner
from kohya_gui.tabs.sources import FileState
from sd_scripts.schema.tabs import tab_fields

LAYOUT = LAYOUTS["lora"]


@pytest.fixture(scope="module")
def form() -> Form:
    known = tab_fields("lora")
    return Form("lora", known, complete(LAYOUT.pages, known, LAYOUT.rest_pages, LAYOUT.set_by_page), Words({}))


def looked_at() -> PlanView:
    return PlanView(problems=[Problem("error", "output_dir", "Missing."), Problem("warning", "seed", "Odd.")])


def test_an_untouched_empty_field_is_needed_and_no_error() -> None:
    manner = session.follow(Manner(), {"output_dir": "", "seed": 0}, fresh=True)
    assert [problem.severity for problem in session.calm(looked_at(), manner).problems] == ["needed", "warning"]


@pytest.mark.parametrize(
    "manner",
    [
        session.follow(Manner(), {"output_dir": "x"}, fresh=True),
        session.follow(session.follow(Manner(), {"output_dir": "x"}, fresh=True), {}, fresh=True),
        session.follow(Manner(), {}, fresh=False),
        Manner(strict=True),
    ],
)
def test_a_touched_field_or_an_opened_file_is_spoken_of_plainly(manner: Manner) -> None:
    assert session.calm(looked_at(), manner).problems[0].severity == "error"


def test_a_browser_keeps_what_was_typed_but_no_secret(form: Form) -> None:
    typed = {"learning_rate": "fast", "wandb_api_key": "s3cret", "huggingface_token": "s3cret", "enable_bucket": True}
    contents = [typed | {"additional_parameters": "--wandb_api_key s3cret"}]
    more = {"wandb_api_key": "s3cret", "additional_parameters": "--huggingface_token=s3cret"}
    file = FileState("/a/b.json", "b.json", {"seed": 3, **more}, {"my_token": "s3cret", "x": 1})
    kept = json.loads(json.dumps(session.keep("start", file, form, contents, Manner(strict=True))))
    assert "s3cret" not in json.dumps(kept)
    found = session.recall("start", kept, form)
    assert found is not None
    state, back, manner = found
    assert back == {"learning_rate": "fast", "enable_bucket": True, "additional_parameters": ""} and manner.strict
    assert (state.path, state.name, state.extras) == ("/a/b.json", "b.json", {"x": 1})
    assert state.values == {"seed": 3, "additional_parameters": ""}


@pytest.mark.parametrize(
    "kept",
    [
        None,
        "x",
        {},
        {"version": 1, "start": "other", "file": {}, "contents": {}},
        {"version": 0, "start": "start", "file": {}, "contents": {}},
        {"start": "start", "file": {}, "contents": {}},
        {"version": 1, "start": "start", "file": 1, "contents": {}},
        {"version": 1, "start": "start", "file": {}, "contents": "damaged"},
        {"version": 1, "start": "start"},
        {"version": 1, "start": "start", "file": {}, "contents": {"caption_prefix": "x" * 300_000}},
    ],
)
def test_what_is_damaged_or_of_another_start_is_not_brought_back(form: Form, kept: object) -> None:
    assert session.recall("start", kept, form) is None


def test_contents_that_no_field_can_show_are_left_out(form: Form) -> None:
    contents = {"learning_rate": True, "enable_bucket": "yes", "gone": "x", "seed": "7", "caption_prefix": ["a"]}
    kept = {"version": 1, "start": "start", "file": {"stamp": "x", "values": []}, "contents": contents}
    found = session.recall("start", kept, form)
    assert found is not None and found[1] == {"seed": "7"} and found[0] == FileState()


def test_a_form_of_endless_texts_is_not_kept(form: Form) -> None:
    contents = [{"sample_prompt_text": "word " * 100_000}]
    assert session.keep("start", FileState(), form, contents, Manner()) is None


def test_a_mend_is_offered_where_a_newcomer_looks() -> None:
    problem = Problem("warning", "caption_extension", "no .caption files", "hint", {"caption_extension": ".txt"})
    said = plan.notes(PlanView(problems=[problem]), {"train_data_dir": "1 folder"}, Words({}))
    assert said["train_data_dir"] == said["caption_extension"]
    assert said["train_data_dir"]["set"] == {"label": "Use .txt", "values": {"caption_extension": ".txt"}}
    assert "data-set" in plan.card(PlanView(problems=[problem]), "lora", Words({}))
