"""Doors that must stay shut: secrets in files, hidden files over the page, settings written as start-up files."""

import json
import os
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from kohya_gui import checks, command, configs, exposure, further, served, start
from kohya_gui.jobs import JobStore
from kohya_gui.paths import Roots
from sd_scripts.schema.buckets import Bucketer, Bucketing
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import split_words
from sd_scripts.schema.values import parse_resolution

SECRET = "k3yk3yk3y"


@pytest.mark.parametrize(
    "text",
    [
        f"--wandb_api_key {SECRET}",
        f"--wandb_api {SECRET}",
        f"--huggingface_tok={SECRET}",
        f'"--wandb_api_key" {SECRET}',
        f"--wandb_api_key='{SECRET}'{SECRET}",
        f"--wandb_api_key {SECRET} --training_comment 'open",
    ],
)
def test_a_secret_in_the_further_flags_is_in_no_file_however_it_is_written(text: str) -> None:
    values = {"additional_parameters": text}
    assert SECRET not in json.dumps(command.without_secrets("train_network", values))
    assert SECRET not in configs.save_text("lora", values)


@pytest.mark.parametrize("other", ["a b", "it's", 'say "x"', "C:\\new x", 'it\'s "both"', ""])
def test_flags_beside_a_secret_keep_their_words(other: str) -> None:
    quoted = further._flag_quoted(other)
    text = f"--training_comment {quoted} --wandb_api_key {SECRET} --seed 3"
    kept = command.without_secrets("train_network", {"additional_parameters": text})["additional_parameters"]
    assert split_words(kept) == ["--training_comment", other, "--seed", "3"]


def test_text_without_a_secret_stays_as_it_was_typed() -> None:
    text = "--seed  3   --training_comment 'a  b' --sd"
    assert command.without_secrets("train_network", {"additional_parameters": text})["additional_parameters"] == text


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    app = Starlette(routes=served.routes(Roots([tmp_path]), JobStore(tmp_path / "jobs")))
    app.auth = app.auth_dependency = None  # type: ignore[attr-defined]
    return TestClient(app)


@pytest.mark.parametrize(
    "name", [".ssh/id_rsa", ".netrc", "a/.config/token", "jobs/.secrets.json", "../x", "/etc/passwd"]
)
@pytest.mark.parametrize("route", ["file", "thumb"])
def test_hidden_files_and_files_in_hidden_folders_are_not_served(
    client: TestClient, tmp_path: Path, name: str, route: str
) -> None:
    path = tmp_path / name
    if name[0] not in "./" or name.startswith(".s") or name.startswith(".n"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
    answer = client.get(f"/kohya/{route}", params={"path": str(path)})
    assert answer.status_code == 404 and answer.text != "secret"


def test_what_lies_open_below_a_hidden_allowed_folder_is_served(tmp_path: Path) -> None:
    root = tmp_path / ".data"
    root.mkdir()
    (root / "a.txt").write_text("fine")
    app = Starlette(routes=served.routes(Roots([tmp_path, root]), JobStore(tmp_path / "jobs")))
    app.auth = app.auth_dependency = None  # type: ignore[attr-defined]
    assert TestClient(app).get("/kohya/file", params={"path": str(root / "a.txt")}).text == "fine"


@pytest.mark.parametrize("name", [".bashrc", "setup.py", "x", ".hidden.json", "sitecustomize.py"])
def test_a_form_is_saved_as_json_and_nothing_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no name for a saved form"):
        configs.write_file(tmp_path / name, configs.save_text("lora", {"training_comment": "$(id)"}))
    assert not (tmp_path / name).exists()


def test_the_whole_disk_is_opened_only_when_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = Path(tmp_path.anchor)
    monkeypatch.setattr(Path, "home", staticmethod(lambda: root))
    monkeypatch.chdir(root)
    assert root not in [folder.resolve() for folder in start._usual_folders(tmp_path)]
    assert tmp_path in start._usual_folders(tmp_path)


def test_a_socket_from_another_site_is_refused() -> None:
    guard = exposure.SameSite(None, local_only=True)
    assert not guard.allows("CONNECT", {"host": "127.0.0.1:7860", "origin": "https://evil.example"})
    assert guard.allows("CONNECT", {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"})


@pytest.mark.parametrize("rule", [{"maximum": 10**9}, {"resolution": (10**6, 10**6)}])
def test_endless_buckets_are_refused_by_page_and_trainer(rule: dict[str, int]) -> None:
    with pytest.raises(UserError, match="above 32768"):
        Bucketer(Bucketing(**{"resolution": (512, 512), "enabled": True, "step": 1, **rule}))  # type: ignore[arg-type]
    assert Bucketer(Bucketing((512, 512), True, 256, 2048)).sizes


@pytest.mark.parametrize("text", ["9" * 5000, "\u00b2", "512,\u00b3"])
def test_numbers_that_python_cannot_read_are_no_resolution(text: str) -> None:
    with pytest.raises(UserError):
        parse_resolution(text)


@pytest.mark.parametrize(
    "value", ["1" + "0" * 400, "1e400", '"\\ud800"', f'"{"9" * 5000}"', "[[1],[2]]", '{"a": 1}', "-1", "true"]
)
@pytest.mark.parametrize("key", ["clip_skip", "train_data_dir", "resolution", "base_weights", "gpu_ids", "output_dir"])
def test_hostile_numbers_in_a_file_break_nothing(tmp_path: Path, key: str, value: str) -> None:
    try:
        opened = configs.open_text(f'{{"LoRA_type": "Standard", "{key}": {value}}}')
    except UserError:
        return
    view = checks.plan("train_network", opened.values, Roots([tmp_path]))
    assert not view.can_start
    assert os.fspath(tmp_path)
