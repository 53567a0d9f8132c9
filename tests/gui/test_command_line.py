"""The command as one line: what is pasted into sh or into cmd arrives at the programs as it is.

The line is read back by rules written down here independently: those of cmd (variables, quotes, carets, chains) and
those by which Windows programs split what cmd hands over.
"""

import shlex
from pathlib import Path

import pytest

from kohya_gui import command
from kohya_gui.command_line import printable
from sd_scripts.schema.errors import UserError

HOSTILE = [
    "plain",
    "two words",
    " blanks at both ends ",
    "it's",
    'say "x"',
    'end with quote"',
    '"',
    "C:\\my dir\\",
    "C:\\plain\\",
    "\\\\server\\share\\",
    'back\\"slash',
    "two\\\\\\\\",
    "$HOME `id` $(id)",
    "a&b|c<d>e^f",
    "& del x",
    '" & del x & "',
    "^",
    "^^%PATH^%",
    "-x",
    "ünï 猫 🐈",
    "",
    "100%",
    "%PATH%",
    'in "quotes %PATH%"',
    "%PATH:~0,1%",
    "%x%PATH%y%",
    "%PATH:a=%b%",
    "wow! !PATH!",
    "(a)",
    "a;b,c=d",
    "tab\there",
    "*?",
    "#no comment",
    "~",
]
VARIABLES = {"PATH": "C:\\Windows", "OS": "Windows_NT"}


class Cmd:
    """What cmd makes of a line typed at its prompt: replaced variables, then commands with the tail each gets."""

    def __init__(self, line: str) -> None:
        self.commands: list[str] = []
        self.variables = dict(VARIABLES)
        self._split(self._expanded(line))

    def _expanded(self, line: str) -> str:
        """Phase 1: %NAME% and %NAME:...% of known variables are replaced, inside quotes too; others stay."""
        made, position = "", 0
        while position < len(line):
            end = line.find("%", position + 1)
            name = line[position + 1 : end].partition(":")[0].upper() if line[position] == "%" and end > 0 else ""
            if name in self.variables:
                made, position = made + self.variables[name], end + 1
            else:
                made, position = made + line[position], position + 1
        return made

    def _split(self, line: str) -> None:
        """Phase 2: quotes switch the signs' meaning off, carets take it from one sign, && parts commands."""
        current, quoted, position = "", False, 0
        while position < len(line):
            sign = line[position]
            assert sign not in "\r\n", "cmd ends the line here"
            if quoted:
                quoted, current = sign != '"', current + sign
            elif sign == "^":
                position += 1
                current += line[position : position + 1]
            elif sign == '"':
                quoted, current = True, current + sign
            elif sign in "&|<>":
                assert line[position : position + 2] == "&&", f"a stray {sign} at {line[:position]!r}"
                position += 1
                self._run(current)
                current = ""
            else:
                assert sign not in "()", "a bracket may open a block"
                current += sign
            position += 1
        self._run(current)

    def _run(self, text: str) -> None:
        text = text.lstrip(" ")
        if text.startswith("set "):
            setting = text[4:]
            # set takes what stands between the first and the last quote; without quotes everything, blanks too
            if setting.startswith('"'):
                setting = setting[1 : setting.rindex('"')]
            name, _, value = setting.partition("=")
            self.variables[name] = value
        else:
            self.commands.append(text)


def windows_words(line: str) -> list[str]:
    """Split as a Windows program does: the documented rules of CommandLineToArgvW, the program's name by its own."""
    if line.startswith('"'):
        end = line.index('"', 1)
        words, line = [line[1:end]], line[end + 1 :]
    else:
        name, _, line = line.partition(" ")
        words = [name]
    current, quoted, backslashes, begun = "", False, 0, False
    for sign in line:
        if sign == "\\":
            backslashes, begun = backslashes + 1, True
            continue
        if sign == '"':
            current += "\\" * (backslashes // 2)
            if backslashes % 2:
                current += '"'
            else:
                quoted = not quoted
            begun = True
        else:
            current += "\\" * backslashes
            if sign in " \t" and not quoted:
                if begun:
                    words.append(current)
                current, begun = "", False
            else:
                current, begun = current + sign, True
        backslashes = 0
    current += "\\" * backslashes
    return [*words, current] if begun else words


@pytest.mark.parametrize("text", [*HOSTILE, "line\nbreak"])
def test_one_argument_reads_back_in_sh(text: str) -> None:
    assert shlex.split(printable(["p", text, "end"], {"A": text}, windows=False)) == [
        "env",
        f"A={text}",
        "p",
        text,
        "end",
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_one_argument_reads_back_in_cmd(text: str) -> None:
    cmd = Cmd(printable(["p.exe", text, "end"], {}, windows=True))
    assert [windows_words(line) for line in cmd.commands] == [["p.exe", text, "end"]]


@pytest.mark.parametrize("text", [text for text in HOSTILE if '"' not in text])
def test_a_variable_holds_what_it_should_in_cmd(text: str) -> None:
    cmd = Cmd(printable(["p.exe"], {"A": text, "B": "2"}, windows=True))
    assert (cmd.variables["A"], cmd.variables["B"], cmd.commands) == (text, "2", ["p.exe"])


def test_all_together_and_what_runs_before() -> None:
    first, second = ["first.exe", *HOSTILE], ["second.exe", *reversed(HOSTILE)]
    cmd = Cmd(printable(second, {"A": "b c"}, windows=True, before=[first]))
    assert [windows_words(line) for line in cmd.commands] == [first, second]
    line = printable(second, {"A": "b c"}, windows=False, before=[first])
    assert shlex.split(line) == ["env", "A=b c", *first, "&&", "env", "A=b c", *second]


@pytest.mark.parametrize(
    "program", ["C:\\Program Files\\Python (x86)\\python.exe", "C:\\a&b\\python.exe", "C:\\plain\\python.exe"]
)
def test_the_program_s_path_reads_back(program: str) -> None:
    cmd = Cmd(printable([program, "x y"], {}, windows=True))
    assert [windows_words(line) for line in cmd.commands] == [[program, "x y"]]


def test_a_percent_sign_in_the_program_s_path_is_no_variable() -> None:
    cmd = Cmd(printable(["C:\\%PATH%\\python.exe", "x"], {}, windows=True))
    assert cmd.commands == ["C:\\%PATH%\\python.exe x"]


@pytest.mark.parametrize("sign", ["\n", "\r", "\x00", "\x1b"])
def test_a_line_break_is_refused_for_cmd(sign: str) -> None:
    with pytest.raises(UserError, match="line break"):
        printable(["p", f"a{sign}b"], {}, windows=True)


def test_the_line_of_a_plan_is_its_command(tmp_path: Path) -> None:
    plan = command.build("train_network", {"output_name": "a b"}, job_dir=tmp_path / "job 1")
    words = shlex.split(plan.line(windows=False))
    assert words[1 + len(plan.env) :] == plan.argv
    cmd = Cmd(plan.line(windows=True))
    assert [windows_words(line) for line in cmd.commands] == [plan.argv]
    assert {name: cmd.variables[name] for name in plan.env} == plan.env
