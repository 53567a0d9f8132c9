"""Every flag that kohya_ss pages took is taken, with and without a desktop, and nothing here opens a dialog on one."""

import re
from pathlib import Path

import pytest

from kohya_gui import exposure, start

ROOT = Path(__file__).resolve().parents[2]
SWITCHES = ("--inbrowser", "--share", "--headless", "--use-ipex", "--debug", "--use-rocm", "--do_not_use_shell",
            "--do_not_share", "--noverify")  # fmt: skip
VALUES = {
    "--listen": "0.0.0.0", "--username": "ann", "--password": "x", "--server_port": "7861", "--language": "de",
    "--config": "config.toml", "--requirements": "requirements.txt", "--root_path": "/gui",
}  # fmt: skip
# the pages that kohya_ss v22 also started alone took these
ALONE = ("--listen", "--username", "--password", "--server_port", "--inbrowser", "--share", "--headless", "--language")


def test_all_flags_of_all_versions_together() -> None:
    words = [*SWITCHES, *(word for pair in VALUES.items() for word in pair)]
    options = start.parser().parse_args(words)
    assert options.headless and options.server_port == 7861 and str(options.config) == "config.toml"
    assert options.listen == "0.0.0.0" and options.share and options.do_not_share


@pytest.mark.parametrize("flag", [*SWITCHES, *VALUES])
def test_each_flag_alone(flag: str) -> None:
    words = [flag] if flag in SWITCHES else [flag, VALUES[flag]]
    assert start.parser().parse_args(words) is not None
    assert flag in (*ALONE, *SWITCHES, *VALUES)


def test_an_unknown_flag_ends_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        start.parser().parse_args(["--listn", "x"])
    assert ended.value.code == 2 and "--listn" in capsys.readouterr().err


def test_nothing_opens_a_dialog_on_the_desktop() -> None:
    found = []
    for path in [*(ROOT / "kohya_gui").rglob("*.py"), *(ROOT / "sd_scripts").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        found += [f"{path.name}: {match[0]}" for match in re.finditer(r"\b(tkinter|easygui|filedialog|zenity)\b", text)]
    assert not found


def test_do_not_share_goes_before_share_so_no_login_is_made() -> None:
    options = start.parser().parse_args(["--share", "--do_not_share"])
    made = exposure.decide(options.listen, options.share and not options.do_not_share, "", "")
    assert made.local and made.auth is None
