"""The plan of every tab: what it trains and on what, and the runs that it does not let begin."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plan_kit import SD1, SDXL, png, safetensors

from kohya_gui import checks, clip_words, machine
from kohya_gui.counting import Counter
from kohya_gui.speeds import SpeedHistory
from sd_scripts.models.tokenizer import build_tokenizer
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.tabs import TABS

BASE = "pretrained_model_name_or_path"
Change = dict[str, Any]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Pictures in class folders and flat ones, their edges, metadata of both kinds, and two models."""
    for number in range(8):
        for folder in ("img/10_sks dog", "flat", "edges"):
            png(tmp_path / folder / f"{number}.png", 640 if number % 2 else 512, 512)
        for folder in ("img/10_sks dog", "flat"):
            (tmp_path / folder / f"{number}.txt").write_text("a photo of newdog4")
    names = [str(tmp_path / "flat" / f"{number}.png") for number in range(8)]
    captions = {name: {"caption": "a dog", "tags": "grass"} for name in names}
    (tmp_path / "cap.json").write_text(json.dumps(captions))
    sized = {name: {**entry, "train_resolution": [512, 448]} for name, entry in captions.items()}
    (tmp_path / "lat.json").write_text(json.dumps(sized))
    (tmp_path / "out").mkdir()
    safetensors(tmp_path / "sd1.safetensors", **SD1)
    safetensors(tmp_path / "xl.safetensors", **SDXL)
    return tmp_path


def values_of(command: str, place: Path, **more: Any) -> dict[str, Any]:
    """A run of a tab that nothing is wrong with."""
    values: dict[str, Any] = {
        BASE: str(place / "sd1.safetensors"), "train_data_dir": str(place / "img"), "output_dir": str(place / "out"),
        "output_name": "dog", "resolution": "512", "enable_bucket": True, "caption_extension": ".txt",
        "train_batch_size": 2, "max_train_epochs": 2, "learning_rate": 1e-4, "mixed_precision": "bf16",
    }  # fmt: skip
    if command == "fine_tune":
        values |= {"in_json": str(place / "cap.json"), "train_data_dir": str(place / "flat"), "dataset_repeats": 10}
    if "inversion" in command:
        values |= {"token_string": "newdog4", "init_word": "dog"}
    if "control" in command:
        values |= {"train_data_dir": str(place / "flat"), "conditioning_data_dir": str(place / "edges")}
    if "lllite" in command:
        values |= {BASE: str(place / "xl.safetensors"), "bucket_reso_steps": 32}
    return values | more


def about(view: checks.PlanView, key: str, severity: str = "error") -> str:
    return " ".join(f"{p.message} {p.hint}" for p in view.problems if p.key == key and p.severity == severity)


@pytest.mark.parametrize(
    ("tab", "training", "size"),
    [
        ("dreambooth", "SD 1.x · whole U-Net and text encoder", 1_066_235_384 * 4),
        ("lora", "SD 1.x · LoRA", None),
        ("textual_inversion", "SD 1.x · new word newdog4 with 1 vectors", 768 * 4),
        ("finetune", "SD 1.x · whole U-Net", 1_066_235_384 * 4),
        ("controlnet", "SD 1.x · ControlNet", 361_279_120 * 4),
        ("lllite", "SDXL · ControlNet-LLLite rank 64", None),
    ],
)
def test_every_tab_says_what_it_trains_and_writes(place: Path, tab: str, training: str, size: int | None) -> None:
    command = TABS[tab].command
    view = checks.plan(command, values_of(command, place))
    text = dict(view.lines)
    assert view.can_start, view.problems
    assert text["Training"].startswith(training) and view.images == 8
    repeats = 1 if "control" in command else 10
    assert view.steps == 2 * 8 * repeats // 2 and text["Length"].startswith(f"{view.steps} steps · 2 epochs of ")
    if size is not None:
        assert view.writes[-1].size == pytest.approx(size, rel=1e-3)
    assert view.trainer in TABS[tab].commands and COMMANDS[view.trainer].method in ("network", "full", "embedding",
                                                                                    "controlnet", "lllite")  # fmt: skip


@pytest.mark.parametrize(
    ("command", "more", "trainer"),
    [
        ("train_db", {BASE: "xl"}, "sdxl_train"),
        ("train_network", {BASE: "xl"}, "sdxl_train_network"),
        ("train_textual_inversion", {BASE: "xl"}, "sdxl_train_textual_inversion"),
        ("train_textual_inversion", {"xti": True}, "train_textual_inversion_XTI"),
        ("fine_tune", {BASE: "xl"}, "sdxl_train"),
        ("fine_tune", {"model_family": "sdxl"}, "sdxl_train"),
    ],
)
def test_the_model_and_the_switches_choose_the_trainer(place: Path, command: str, more: Change, trainer: str) -> None:
    more = {key: str(place / "xl.safetensors") if value == "xl" else value for key, value in more.items()}
    view = checks.plan(command, values_of(command, place, bucket_reso_steps=64, **more))
    assert view.trainer == trainer and view.images == 8
    assert dict(view.lines)["Training"].startswith("SDXL" if "sdxl" in trainer else "SD 1.x")
    # options of the tab's other trainer say nothing about this one
    assert trainer != "sdxl_train" or "whole U-Net · " in dict(view.lines)["Training"]
    wrong = [problem.key for problem in view.problems if problem.severity == "error"]
    assert wrong == (["model_family"] if "model_family" in more else []), view.problems


def test_rates_are_those_of_the_parts_that_learn(place: Path) -> None:
    def rates(command: str, **more: Any) -> str:
        return dict(checks.plan(command, values_of(command, place, **more)).lines)["Rates"]

    assert rates("train_db", learning_rate_te=1e-6).startswith("U-Net 1e-4 · text encoder 1e-6 · ")
    stopped = rates("train_db", stop_text_encoder_training=5)
    assert "text encoder 1e-4" in stopped and "until step" in stopped
    assert rates("fine_tune").startswith("U-Net 1e-4 · constant")
    assert rates("train_textual_inversion").startswith("new word 1e-4 · ")
    assert rates("train_controlnet").startswith("control network 1e-4 · ")
    assert rates("train_network", network_train_unet_only=True).startswith("U-Net 1e-4 · constant")


def test_the_time_is_known_for_each_trainer_of_its_own(place: Path, tmp_path: Path) -> None:
    history = SpeedHistory(tmp_path / "speeds.json")
    values = values_of("fine_tune", place)
    unknown = checks.plan("fine_tune", values, history=history)
    assert dict(unknown.lines)["Time"] == "unknown until a similar run is done here" and unknown.seconds is None
    for number in range(3):
        history.learn(f"job{number}", {"command": "fine_tune", "values": values}, 0.5, 20.0)
    history.learn("tool", {"command": "tool:caption", "values": {}}, 0.5, 20.0)
    known = checks.plan("fine_tune", values, history=history)
    assert known.seconds == pytest.approx(known.steps * 0.5 + 20)
    assert dict(known.lines)["Time"] == "about 60 s (from 3 runs here)" and "tool" not in history.known()
    for other in ({"train_text_encoder": True}, {BASE: str(place / "xl.safetensors")}):
        assert checks.plan("fine_tune", values | other, history=history).seconds is None
    db = values_of("train_db", place)
    assert checks.plan("train_db", db, history=history).seconds is None


def test_metadata_says_words_and_sizes(place: Path) -> None:
    view = checks.plan("fine_tune", values_of("fine_tune", place))
    assert dict(view.lines)["Pictures"].startswith("8 pictures · 8 with captions · 80 showings")
    assert view.buckets == {(512, 512): 40, (576, 448): 40}
    prescribed = checks.plan("fine_tune", values_of("fine_tune", place, in_json=str(place / "lat.json"), resolution=""))
    assert prescribed.can_start and prescribed.buckets == {(512, 448): 80}
    unsized = checks.plan("fine_tune", values_of("fine_tune", place, resolution=""))
    assert "training size" in about(unsized, "resolution")
    (place / "flat" / "3.png").unlink()
    gone = checks.plan("fine_tune", values_of("fine_tune", place))
    assert "1 pictures that are not there" in about(gone, "in_json") and gone.images == 0


def test_pictures_that_are_prepared_first_are_counted_already(place: Path) -> None:
    more = {"in_json": None, "train_dir": str(place / "lists")}
    view = checks.plan("fine_tune", values_of("fine_tune", place, **more))
    assert view.plan is not None and view.plan.before and not about(view, "in_json"), view.problems
    assert view.images == 8 and view.buckets == {(512, 512): 40, (576, 448): 40} and "First" in dict(view.lines)


def test_validation_takes_the_trainers_own_choice(place: Path) -> None:
    view = checks.plan("train_network", values_of("train_network", place, validation_split=0.25, seed=3))
    assert view.images == 6 and sum(view.buckets.values()) == 60
    assert "2 kept for validation" in dict(view.lines)["Pictures"]
    everything = checks.plan("train_network", values_of("train_network", place, validation_split=0.99))
    assert not everything.can_start and "none is left" in about(everything, "validation_split")


def _remove(name: str) -> Callable[[Path], Change]:
    def do(place: Path) -> Change:
        (place / name).unlink()
        return {}

    return do


def _add(name: str, width: int = 512, height: int = 512) -> Callable[[Path], Change]:
    def do(place: Path) -> Change:
        png(place / name, width, height)
        return {}

    return do


def _empty(place: Path) -> Change:
    for path in (place / "img/10_sks dog").glob("*.txt"):
        path.write_text(" \n")
    return {}


def _one(place: Path) -> Change:
    for number in range(1, 8):
        (place / f"img/10_sks dog/{number}.png").unlink()
    return {}


def _locked(place: Path) -> Change:
    (place / "out").rmdir()
    (place / "out").write_text("a file")
    return {}


def _broken(place: Path) -> Change:
    (place / "img/10_sks dog/3.png").write_bytes(b"\x89PNG nothing")
    return {}


NET, DB, TI, CN = "train_network", "train_db", "train_textual_inversion", "train_controlnet"
LLLITE, DIR, CONTROL, WORD = "sdxl_train_control_net_lllite", "train_data_dir", "conditioning_data_dir", "token_string"
# name, trainer, what is done wrong, the field that says it, how gravely, some of its words, what a click sets
DOOMED: list[tuple[str, str, Change | Callable[[Path], Change], str, str, str, Change | None]] = [
    ("one level too high", NET, {DIR: "{}/up"}, DIR, "error", "inside it", {DIR: "{}/up/img"}),
    ("one level too deep", NET, {DIR: "{}/img/10_sks dog"}, DIR, "warning", "10 times", {DIR: "{}/img"}),
    ("ending of captions", NET, {"caption_extension": ".caption"}, "caption_extension",
     "warning", "8 .txt", {"caption_extension": ".txt"}),
    ("folder misspelt", NET, {DIR: "{}/imgs"}, DIR, "error", "does not exist", {DIR: "{}/img"}),
    ("model misspelt", NET, {BASE: "{}/sd1.safetensor"}, BASE, "error", "Did you mean", {BASE: "{}/sd1.safetensors"}),
    ("empty captions", NET, _empty, DIR, "warning", "are empty", None),
    ("one picture", NET, _one, DIR, "warning", "one picture only", None),
    ("damaged picture", NET, _broken, DIR, "error", "3.png", None),
    ("too small a size", NET, {BASE: "{}/xl.safetensors"}, "resolution",
     "warning", "made for pictures of 1024", {"resolution": "1024,1024"}),
    ("too large a size", NET, {"resolution": "1024"}, "resolution",
     "warning", "seldom helps", {"resolution": "512,512"}),
    ("no multiple of 8", NET, {"resolution": "510", "enable_bucket": False}, "resolution",
     "error", "multiples of 8", None),
    ("step of buckets", NET, {"bucket_reso_steps": 12}, "bucket_reso_steps", "error", "multiple of 8", None),
    ("regularisation = training", DB, {"reg_data_dir": "{}/img"}, "reg_data_dir",
     "error", "undo itself", {"reg_data_dir": None}),
    ("no class folder", DB, {"reg_data_dir": "{}/edges"}, "reg_data_dir", "warning", "1_dog", None),
    ("output is a file", NET, _locked, "output_dir", "error", "is a file", None),
    ("known token", TI, {WORD: "cat"}, WORD, "error", "token of the text encoder", {WORD: "cat-new"}),
    ("word not in captions", TI, {WORD: "zzword9"}, WORD,
     "error", "None of the 8 captions", {"caption_prefix": "zzword9"}),
    ("start of several tokens", TI, {"init_word": "golden retriever dog"}, "init_word",
     "warning", "3 tokens", {"num_vectors_per_token": 3}),
    ("ControlNet on SDXL", CN, {BASE: "{}/xl.safetensors", "resolution": "1024"}, BASE,
     "error", "1 and 2 only", None),
    ("LLLite on SD 1 called XL", LLLITE, {BASE: "{}/sd1.safetensors", "model_family": "sdxl"}, BASE,
     "error", "SDXL only", None),
    ("LLLite on SD 1", LLLITE, {BASE: "{}/sd1.safetensors"}, BASE, "error", "SDXL only", None),
    ("no control picture", CN, _remove("edges/5.png"), CONTROL, "error", "1 (5.png) of 8", None),
    ("a control picture too many", CN, _add("edges/99.png"), CONTROL, "error", "99.png", None),
    ("another shape", CN, _add("edges/5.png", 512, 512), CONTROL, "error", "another shape", None),
    ("control = pictures", CN, {CONTROL: "{}/flat"}, CONTROL, "error", "nothing to learn", None),
    ("control with class folders", CN, {DIR: "{}/img"}, DIR, "error", "one flat folder", {DIR: "{}/img/10_sks dog"}),
    ("control folder missing", LLLITE, {CONTROL: "{}/none"}, CONTROL, "error", "does not exist", None),
    ("embedding missing", TI, {"weights": "{}/none.pt", "init_word": None}, "weights",
     "error", "does not exist", None),
    ("results among pictures", NET, {"output_dir": "{}/img"}, "output_dir", "warning", "among the pictures", None),
]  # fmt: skip


@pytest.mark.parametrize("case", DOOMED, ids=[case[0] for case in DOOMED])
def test_doomed_runs_are_stopped_or_warned_of(place: Path, case: Any) -> None:
    _, command, change, key, severity, words, fix = case
    (place / "up").mkdir()
    os.symlink(place / "img", place / "up" / "img")

    def placed(given: Change) -> Change:
        return {k: v.replace("{}", str(place)) if isinstance(v, str) else v for k, v in given.items()}

    changed = change(place) if callable(change) else placed(change)
    view = checks.plan(command, values_of(command, place, **changed))
    assert words in about(view, key, severity), view.problems
    others = [p for p in view.problems if p.severity == "error" and p.key != key]
    assert others or view.can_start == (severity == "warning")
    if fix is not None:
        found = [p for p in view.problems if p.key == key and words in f"{p.message} {p.hint}"]
        assert found[0].fix == placed(fix)
        mended = checks.plan(command, values_of(command, place, **changed | placed(fix)))
        assert words not in about(mended, key, severity), "the click does not mend it"


def test_precision_that_the_gpu_does_not_have(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: (machine.Gpu(0, "T4", 16 << 30, (7, 5)),))
    view = checks.plan("train_network", values_of("train_network", place))
    assert "T4 does not compute in bf16" in about(view, "mixed_precision") and not view.can_start
    values = values_of("train_network", place, mixed_precision="fp16", resolution="1024")
    black = checks.plan("train_network", values | {BASE: str(place / "xl.safetensors")})
    assert [p.fix for p in black.problems if p.key == "no_half_vae"] == [{"no_half_vae": True}]


def test_tokens_are_those_of_the_real_tokenizer() -> None:
    tokenizer = build_tokenizer("sd1")
    vocabulary = tokenizer.get_vocab()
    for text in ("dog", "golden retriever", "a photo of sks", "Mycat4", "1girl, hatsune miku", "it's", "zzqx", "x_y"):
        assert clip_words.count_tokens(text) == len(tokenizer(text, add_special_tokens=False).input_ids), text
    for word in ("cat", "mycat4", "sks", "zzword9", "a", "the"):
        assert clip_words.is_token(word) == (word in vocabulary)
        assert clip_words.is_word(word) == (f"{word}</w>" in vocabulary)


def test_many_pictures_are_counted_in_the_background(place: Path) -> None:
    for number in range(1_500):
        png(place / f"many/1_x/{number}.png", 512 + number % 7 * 64, 512)
    values, counter = values_of("train_network", place, train_data_dir=str(place / "many")), Counter(patience=0.001)
    first = checks.plan("train_network", values, counter=counter)
    assert first.counting and dict(first.lines)["Pictures"] == "being counted" and first.images == 0
    end = time.monotonic() + 60
    while (view := checks.plan("train_network", values, counter=counter)).counting and time.monotonic() < end:
        time.sleep(0.05)
    assert view.images == 1_500 and not view.counting
    png(place / "many/1_x/new.png")
    while (view := checks.plan("train_network", values, counter=counter)).counting and time.monotonic() < end:
        time.sleep(0.05)
    assert view.images == 1_501
    begun = time.process_time()
    checks.plan("train_network", values, counter=counter)
    assert time.process_time() - begun < 0.15
