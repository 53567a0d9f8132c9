"""Caption processing: results and number of draws against recorded numbers; reading of caption files."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sd_scripts.schema.captions import CaptionRules, Moment, compose, count_tags, read_caption
from sd_scripts.schema.errors import DataError

NUMBERS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "captions.json").read_text(encoding="utf-8"))
CASES = [(name, case) for name, cases in NUMBERS.items() if name != "tag_frequency" for case in cases]


def differs_by_design(case: dict[str, Any]) -> bool:
    """Old rules that newer ones replace: later lines in the caption, one instead of two separators."""
    caption = case["in"]["caption"]
    return case["version"] == "v0.8.4" and ("\n" in caption or caption.count("|||") > 1)


RUNNING = [(name, case) for name, case in CASES if not differs_by_design(case)]


def results(given: dict[str, Any]) -> tuple[list[Any], random.Random]:
    rules = CaptionRules(**given["options"])
    rng = random.Random(given["random_seed"])
    found: list[Any] = []
    for call in range(given["calls"]):
        step = given["steps"][call] if "steps" in given else 0
        epoch = given["epochs"][call] if "epochs" in given else 1
        moment = Moment(epoch, step, given.get("max_steps", 0))
        text = compose(given["caption"], rules, rng, moment, tuple(given.get("repl", {}).items()))
        if "steps" in given:
            found.append({"step": step, "result": text})
        elif "epochs" in given:
            found.append({"epoch": epoch, "result": text})
        else:
            found.append(text)
    return found, rng


@pytest.mark.parametrize(("section", "case"), RUNNING, ids=[name for name, _ in RUNNING])
def test_caption_against_recorded_results(section: str, case: dict[str, Any]) -> None:
    found, rng = results(case["in"])
    assert found == case["out"]["results"]
    assert rng.random() == pytest.approx(case["out"]["next_python_random"], abs=1e-8)


def test_nearly_all_recorded_cases_are_used() -> None:
    assert len(RUNNING) >= len(CASES) - 8


def test_only_the_first_line_is_used() -> None:
    assert compose("a, b\nc, d", CaptionRules(), random.Random(0)) == "a, b"


def test_tag_frequency() -> None:
    case = NUMBERS["tag_frequency"][0]
    counts: dict[str, Counter[str]] = {}
    for name, captions in case["in"]["calls"]:
        for caption in captions:
            count_tags(counts.setdefault(name, Counter()), caption)
    assert {name: dict(counter) for name, counter in counts.items()} == case["out"]


def test_reading(tmp_path: Path) -> None:
    def written(content: bytes) -> Path:
        path = tmp_path / "c.txt"
        path.write_bytes(content)
        return path

    assert read_caption(written(b"  a dog, grass \r\nsecond\r\n")) == "a dog, grass"
    assert read_caption(written("\ufeffein Häuschen 犬".encode())) == "ein Häuschen 犬"
    assert read_caption(written("ein Häuschen".encode("utf-16"))) == "ein Häuschen"
    assert read_caption(written(b"a\n\n b \n"), enable_wildcard=True) == "a\nb"
    assert read_caption(written(b"")) is None
    assert read_caption(written(b"\n")) == ""
    with pytest.raises(DataError, match=r"c\.txt is not UTF-8"):
        read_caption(written("Häuschen".encode("latin-1")))
    with pytest.raises(DataError, match=r"gone\.txt"):
        read_caption(tmp_path / "gone.txt")


def test_templates_are_drawn_in_the_recorded_order() -> None:
    rng = random.Random(0)
    templates = tuple(f"number {number} of tok" for number in range(27))
    drawn = [compose("ignored", CaptionRules(), rng, None, (("", templates),)) for _ in range(4)]
    assert drawn == [templates[number] for number in (12, 24, 13, 1)]


def test_replacements_are_done_one_after_the_other() -> None:
    pairs = (("", ("a tok",)), ("tok", "tok tok1"), ("tok1", "x"))
    assert compose("ignored", CaptionRules(), random.Random(0), None, pairs) == "a tok x"
    drawn = {compose("a y", CaptionRules(), random.Random(n), None, (("y", ("p", "q")),)) for n in range(9)}
    assert drawn == {"a p", "a q"}


def test_the_options_that_change_captions_are_named() -> None:
    assert CaptionRules(caption_prefix="a", keep_tokens=1, secondary_separator=";").changing == ()
    rules = CaptionRules(shuffle_caption=True, caption_dropout_every_n_epochs=2, token_warmup_step=0.5)
    assert rules.changing == ("shuffle_caption", "caption_dropout_every_n_epochs", "token_warmup_step")
    assert rules.draws
