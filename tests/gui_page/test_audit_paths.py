"""Every way by which a path comes from a browser refuses what lies outside the allowed folders, however it is
written."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from kohya_gui import checks, pickers, recent, served, tools, upload
from kohya_gui.further import OURS
from kohya_gui.jobs import JobStore
from kohya_gui.localization import Words
from kohya_gui.paths import Roots
from kohya_gui.prepare import folders, lists, tags
from kohya_gui.services import Services
from kohya_gui.settings import Remembered
from kohya_gui.tabs.config_bar import ConfigBar, FileState
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tabs import TABS, tab_fields

SECRET = "a-picture-nobody-may-see"
BAD = (
    "{}/secret/{name}", "{}/open/../secret/{name}", "../secret/{name}", "{}/open/link/{name}", "{}/open/file link",
    "{}/open/.hidden/{name}", "/etc/passwd", "/proc/self/environ", "~root/{name}", "//server/share/{name}",
    "\\\\server\\share\\{name}", "\\\\?\\C:\\{name}", "//./pipe/{name}", "C:x{name}", "nul", "{}/open/con.json",
    "{}/open/a\0b.png", "file:///etc/passwd", "https://example.org/{name}", "{}/OPEN/{name}", "{}/open-not/{name}",
)  # fmt: skip


class House:
    """An allowed folder beside a secret one, with links out of it and a hidden one inside."""

    def __init__(self, base: Path) -> None:
        for name in ("open/pictures", "secret", "open/.hidden", "open-not"):
            (base / name).mkdir(parents=True)
        for folder in ("secret", "open/.hidden", "open-not"):
            Image.new("RGB", (8, 8)).save(base / folder / "a.png")
            for name in ("a.json", "a.txt"):
                (base / folder / name).write_text(f'{{"LoRA_type": "Standard", "training_comment": "{SECRET}"}}')
        Image.new("RGB", (8, 8)).save(base / "open/pictures/a.png")
        os.symlink(base / "secret", base / "open/link")
        os.symlink(base / "secret/a.json", base / "open/file link")
        self.base = base
        jobs = JobStore(base / "open/jobs")
        home = base / "open"
        self.services = Services(Roots([home]), jobs, Words({}), home, Remembered(base / "page.json"))
        app = Starlette(routes=served.routes(self.services.roots, jobs, self.services.tensorboard))
        app.auth = app.auth_dependency = None  # type: ignore[attr-defined]
        self.client = TestClient(app)

    def path(self, text: str, name: str) -> str:
        """One of BAD with this file's name at its end."""
        return text.replace("{name}", name).replace("{}", str(self.base))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"))


def _route(route: str) -> Callable[[House, str], None]:
    def ask(house: House, path: str) -> None:
        answer = house.client.get(f"/kohya/{route}", params={"path": path})
        assert SECRET not in answer.text
        if answer.status_code == 404:
            raise UserError("refused")

    return ask


def _upload(house: House, path: str) -> None:
    answer = house.client.put("/kohya/upload", params={"folder": path, "name": "new.txt"}, content=b"x")
    if "refused" in answer.json():
        raise UserError("refused")


def _dialog(house: House, path: str) -> None:
    for kind in ("folder", "model", "file", "open", "save"):
        html = pickers.dialog(house.services.roots, Words({}), {"path": path, "kind": kind})["html"]
        assert "k-said" in html and "a.json" not in html.partition("k-rows")[2], kind
        assert pickers.completions(house.services.roots, {"path": f"{path}/", "kind": kind}) == []
    raise UserError("refused")


def _bar(house: House) -> Any:
    return SimpleNamespace(services=house.services, tab="lora", words=Words({}))


def _recent(house: House, path: str) -> None:
    recent.use(house.services.remembered, "lora", path)
    if recent.listed(house.services.remembered, "lora", house.services.roots) == []:
        raise UserError("refused")


def _folder_preparation(house: House, path: str) -> None:
    right = {
        "util_instance_prompt_input": "a",
        "util_class_prompt_input": "b",
        "util_training_images_dir_input": str(house.base / "open/pictures"),
        "util_training_dir_output": str(house.base / "open/made"),
    }
    assert folders.wanted(right, house.services.roots)
    refused = 0
    for key in ("util_training_images_dir_input", "util_training_dir_output", "util_regularization_images_dir_input"):
        try:
            folders.wanted({**right, key: path}, house.services.roots)
        except UserError:
            refused += 1
    if refused == 3:
        raise UserError("refused")


def _tools(house: House, path: str) -> None:
    doors = [
        (tool, key)
        for tool in tools.TOOLS.values()
        for key, option in tools.tool_fields(tool).items()
        if option.kind in ("file", "folder", "model") and (option.kind == "folder" or "/" not in path.strip("/"))
    ]
    assert len(doors) >= 5
    for tool, key in doors:
        others = {name: str(house.base / "open/pictures") for name, o in tools.tool_fields(tool).items() if not o.flag}
        with pytest.raises(UserError):
            tools.resolved(tool, {**others, key: path}, house.services.roots)
    raise UserError("refused")


def _lists(house: House, path: str) -> None:
    for key in ("train_data_dir", "train_dir"):
        with pytest.raises(UserError):
            values = {"train_data_dir": str(house.base / "open"), "train_dir": str(house.base / "open"), key: path}
            lists.check_places(values, house.services.roots)
    raise UserError("refused")


DOORS: dict[str, tuple[str, Callable[[House, str], Any]]] = {
    "file": ("a.json", _route("file")),
    "thumb": ("a.png", _route("thumb")),
    "upload by address": ("", _upload),
    "upload": ("", lambda house, path: upload.store(house.services.roots, path, "new.txt", b"x")),
    "dialog": ("", _dialog),
    "listing": ("", lambda house, path: house.services.roots.listing(path)),
    "open": ("a.json", lambda house, path: ConfigBar.open_path(_bar(house), path)),
    "save": ("new.json", lambda house, path: ConfigBar._save_to(_bar(house), Path(path), FileState(), {}, sure=True)),
    "recent files": ("a.json", _recent),
    "captions by hand": ("a.png", lambda house, path: tags.write(house.services.roots, path, ".txt", "x")),
    "folder preparation": ("", _folder_preparation),
    "tools": ("", _tools),
    "lists of finetune": ("", _lists),
    "tensorboard": ("", lambda house, path: house.services.tensorboard.start(path)),
}


@pytest.mark.parametrize("door", list(DOORS))
def test_no_door_lets_a_path_outside_in(house: House, door: str) -> None:
    name, work = DOORS[door]
    for text in BAD:
        if door == "recent files" and not text.startswith("{}"):
            continue
        before = sorted(house.base.rglob("*"))
        try:
            work(house, house.path(text, name))
        except UserError:
            pass
        else:
            pytest.fail(f"{door} took {text!r}")
        assert sorted(path for path in house.base.rglob("*") if path.name != "page.json") == [
            path for path in before if path.name != "page.json"
        ], f"{door} wrote something for {text!r}"


@pytest.mark.parametrize("tab", list(TABS))
def test_no_path_field_of_a_tab_reaches_outside(house: House, tab: str) -> None:
    known = tab_fields(tab)
    keys = [key for key, option in known.items() if option.kind in ("file", "folder", "model") and key not in OURS]
    assert len(keys) > 8
    outside = str(house.base / "secret" / "a.json")
    for key in keys:
        value: Any = [outside] if known[key].type.startswith("list") else outside
        view = checks.plan(TABS[tab].command, {key: value}, house.services.roots)
        assert not view.can_start
        said = [p for p in view.problems if p.key == key and p.severity == "error"]
        hidden = known[key].when is not None
        assert any("outside" in p.message for p in said) or hidden, f"{key}: {[p.message for p in view.problems]}"
