"""The demo's saved form, and the flags of the page."""

import json
from pathlib import Path

import pytest

from kohya_gui import demo
from kohya_gui.start import main, parser
from sd_scripts.schema.errors import UserError


def test_relative_places_of_the_demo_lie_beside_its_file(tmp_path: Path) -> None:
    settings = tmp_path / "demo" / "demo.json"
    settings.parent.mkdir()
    absolute = str(tmp_path / "elsewhere")
    content = {"format": "kohya-gui", "train_data_dir": "pictures", "output_dir": absolute, "max_train_steps": 80}
    settings.write_text(json.dumps(content), encoding="utf-8")
    values = demo.read(settings)
    assert values == {
        "train_data_dir": str(settings.parent / "pictures"),
        "output_dir": absolute,
        "max_train_steps": 80,
    }


def test_an_existing_demo_is_not_made_again(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "demo.json").write_text('{"seed": 1}', encoding="utf-8")
    assert demo.prepare(tmp_path) == {"seed": 1}


def test_a_damaged_demo_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="Remove the folder"):
        demo.read(tmp_path / "demo.json")


OLDER = (
    "--listen 127.0.0.1 --username a --password b --server_port 7861 --inbrowser --share --headless --language de "
    "--use-ipex --config x.toml --debug --use-rocm --do_not_use_shell --do_not_share --requirements r.txt "
    "--root_path /gui --noverify"
)


def test_flags_of_older_versions_are_taken() -> None:
    options = parser().parse_args(OLDER.split())
    assert (options.listen, options.server_port, options.language) == ("127.0.0.1", 7861, "de")
    assert options.do_not_share and options.share and options.root_path == "/gui"
    bare = parser().parse_args([])
    assert (bare.listen, bare.server_port, bare.share, bare.language) == ("127.0.0.1", 0, False, None)


def test_a_mistake_in_the_flags_is_one_sentence_and_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--username", "ann", "--jobs_dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "name and a password" in said and "Traceback" not in said
    assert main(["--language", "klingon", "--jobs_dir", str(tmp_path)]) == 2
    assert 'no language "klingon"' in capsys.readouterr().err
