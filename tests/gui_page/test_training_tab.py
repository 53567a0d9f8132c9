"""A training tab without a browser: what its one big event sends, how long it takes, and what the pictures show."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from kohya_gui import checks, pictures
from kohya_gui.effective import understand
from kohya_gui.forecast import Forecast
from kohya_gui.jobs import JobStore
from kohya_gui.layouts import LAYOUTS
from kohya_gui.localization import Words
from kohya_gui.paths import Roots
from kohya_gui.services import Services
from kohya_gui.settings import Remembered
from kohya_gui.tabs.dataset import Browsing, picture_sheet, strip_card, view
from kohya_gui.tabs.session import Manner
from kohya_gui.tabs.training import LATER, Looker, TabSpec, TrainingTab
from sd_scripts.schema.tabs import TABS

# places in what the event gives
CARD, START, CHANNEL, MANNER, LOOKER, BROWSING = 0, 2, 5, 6, 7, 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tab")
    (root / "img" / "2_dog").mkdir(parents=True)
    for number in range(100):
        Image.new("RGB", (64 + number % 3 * 8, 64)).save(root / "img" / "2_dog" / f"{number}.png")
        if number:
            (root / "img" / "2_dog" / f"{number}.txt").write_text("a mynewword9 dog")
    entries = {str(root / "img" / "2_dog" / f"{number}.png"): {"caption": f"dog {number}"} for number in range(4)}
    (root / "cap.json").write_text(json.dumps(entries))
    return root


@pytest.fixture(scope="module")
def lora(folder: Path) -> Iterator[TrainingTab]:
    services = Services(
        Roots([folder]), JobStore(folder / "jobs"), Words({}), folder, Remembered(folder / "page.json"), foretell=False
    )
    with gr.Blocks():
        tab = TrainingTab(TabSpec.of(TABS["lora"], LAYOUTS["lora"]), services)
        tab.build_memory()
        tab.build()
    yield tab


def look(tab: TrainingTab, values: dict[str, Any], before: list[Any] | None = None) -> list[Any]:
    """What one look at the form gives, after another one."""
    manner = before[MANNER] if before else Manner()
    looker = before[LOOKER] if before else Looker()
    browsing = Browsing() if before is None or isinstance(before[BROWSING], dict) else before[BROWSING]
    return tab._refresh(tab.start_file, manner, looker, browsing, values)


def test_a_look_is_quick_and_sends_only_news(lora: TrainingTab, folder: Path) -> None:
    values = {"train_data_dir": str(folder / "img"), "resolution": "64", "caption_extension": ".txt"}
    first = look(lora, values)
    while "again" in first[CHANNEL]:
        time.sleep(0.05)
        first = look(lora, values)
    assert "100 pictures" in first[CARD].replace("<span>", "") and len(first[CHANNEL]["fields"]["notes"]) > 2
    took = []
    for _ in range(3):
        begun = time.process_time()
        again = look(lora, values, first)
        took.append(time.process_time() - begun)
    assert min(took) < 0.1
    assert set(again[CHANNEL]) == {"looked", "t"}
    changed = look(lora, values | {"network_dim": "x"}, first)
    assert changed[CHANNEL]["fields"]["notes"]["network_dim"]["say"] == "error"
    assert changed[LOOKER].who == first[LOOKER].who != "" and changed[START]["interactive"] is False


def test_what_the_trainer_refuses_stops_the_start(lora: TrainingTab, folder: Path) -> None:
    plan = checks.plan("train_network", {}, Roots([folder]))
    refused = Forecast("refused", problem="The state is of another run.", key="resume", hint="Choose another one.")
    seen = checks.with_forecast(plan, refused)
    assert [p.key for p in seen.problems if p.message.startswith("The state")] == ["resume"]
    assert checks.with_forecast(plan, None) is plan
    working = checks.with_forecast(plan, Forecast("working"))
    assert ("Memory", "being predicted") in working.lines and working.problems == plan.problems


def test_a_list_of_pictures_is_shown_like_a_folder(folder: Path) -> None:
    values = {"in_json": str(folder / "cap.json"), "resolution": "64", "train_data_dir": str(folder / "img")}
    what = understand("fine_tune", values)
    found, _ = checks.pictures(what)
    html = view(found.folders, Browsing(), "", Words({}))
    assert html.count("<figure") == 4 and "dog 3" in html and "cap.json" in html
    assert "dog 0" in picture_sheet(found.folders[0].pictures[0], found.folders[0], what.seen, Words({}))
    assert "<img" in strip_card(found.folders, what.seen, Words({}))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("caption", "a mynewword9 mynewword91 dog"),
        ("object template", "photo of"),
        ("style template", "in the style of"),
    ],
)
def test_a_new_word_is_shown_as_the_text_encoder_gets_it(folder: Path, template: str, words: str) -> None:
    values = {
        "train_data_dir": str(folder / "img"), "resolution": "64", "caption_extension": ".txt",
        "token_string": "mynewword9", "num_vectors_per_token": 2, "template": template,
    }  # fmt: skip
    what = understand("train_textual_inversion", values)
    folders = checks.pictures(what)[0].folders
    seen = [pictures.captions_seen(picture, folders[0], what.seen) for picture in folders[0].pictures[1:9]]
    assert any(words in text for draws in seen for text in draws), seen[0]
    assert all("mynewword9 mynewword91" in text for draws in seen for text in draws)


def test_what_a_tab_opens_with_leaves_the_family_to_the_model(lora: TrainingTab) -> None:
    assert lora.start_file.preset and "model_family" not in lora.start_file.values


def test_the_plan_says_when_the_memory_will_be_told(lora: TrainingTab, folder: Path) -> None:
    plan = checks.plan("train_network", {}, Roots([folder]))
    told = checks.with_forecast(plan, Forecast("later", problem=LATER["model"]))
    assert ("Memory", "told once the model has been fetched") in told.lines and Forecast("later").pace is None
