"""What the Jobs tab says of samples and of what ended meanwhile."""

from pathlib import Path
from typing import Any

from kohya_gui.job_log import Sample
from kohya_gui.job_view import JobView
from kohya_gui.localization import Words
from kohya_gui.tabs import jobs_html
from kohya_gui.tabs.tool_panel import progress

WORDS = Words({})


def job(**facts: Any) -> JobView:
    plain: dict[str, Any] = {"id": "0" * 8, "name": "<cat>", "state": "done", "folder": Path("."), "created": 0.0}
    return JobView(**plain | {"gpu_set": ""} | facts)


def sample(step: int, index: int = 0) -> Sample:
    return Sample(f"/s/{index}_{step}.png", step, 0, index, f"prompt {index}", 1)


def test_two_samples_are_compared_in_the_order_of_their_steps() -> None:
    view = job(samples=[sample(step) for step in (0, 10, 20)] + [sample(10, index=1)])
    for pair, shown in (((), (0, 20)), ((20, 10), (10, 20)), ((10, 99), (0, 20)), ((10, 10), (0, 20))):
        html = jobs_html.samples(view, 0, pair, WORDS)
        first, second = (html.index(f'kohya/file?path=/s/0_{step}.png">') for step in shown)
        assert first < second and "k-cut" in html
        assert html.count("k-tile k-on") == 2


def test_one_sample_has_no_slider_and_each_prompt_its_own_pictures() -> None:
    view = job(samples=[sample(0), sample(10), sample(10, index=1)])
    html = jobs_html.samples(view, 1, (), WORDS)
    assert "k-cut" not in html and "/s/1_10.png" in html and "/s/0_10.png" not in html
    assert 'data-do="prompt"' in html


def test_what_ended_since_the_last_visit_is_said_once() -> None:
    views = [
        job(ended=50.0, step=1200),
        job(name="style", state="failed", ended=60.0, error="Out of memory."),
        job(name="old", ended=5.0),
        job(name="now", state="training"),
    ]
    said = jobs_html.away(views, 10.0, WORDS)
    assert "&lt;cat&gt; finished, 1,200 steps; style failed (Out of memory.)" in said
    assert "old" not in said and "now" not in said
    assert jobs_html.away(views, 70.0, WORDS) == ""
    assert jobs_html.away(views, 0.0, WORDS) == "", "the first visit has missed nothing"


def test_of_many_that_ended_the_rest_is_counted() -> None:
    assert "and 2 more" in jobs_html.away([job(ended=50.0)] * 5, 10.0, WORDS)


def test_only_a_job_with_something_saved_can_be_resumed() -> None:
    gone = {"state": "interrupted", "step": 12}
    assert 'data-do="resume"' not in jobs_html.row(job(**gone), False, WORDS)
    for saved in ({"resume_from": "/o/cat-000010-state"}, {"initial_step": 5}):
        assert 'data-do="resume"' in jobs_html.row(job(**gone, **saved), False, WORDS)
    assert 'data-do="again"' in jobs_html.row(job(**gone), False, WORDS)


def test_a_cause_is_said_in_the_readers_language() -> None:
    words = Words({"{0} is there already.": "{0} ist schon da.", "Choose another name.": "Anders nennen."}, "de")
    view = job(state="failed", tool=True, error="a.safetensors is there already.", hint="Choose another name.")
    assert "a.safetensors ist schon da." in jobs_html.row(view, False, words)
    assert "ist schon da. Anders nennen." in progress(view, words)
    assert "Anders nennen." in jobs_html.why(view, {}, "", words)
