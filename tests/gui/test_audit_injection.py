"""Text that a shell, a TOML file or a command line could take for something else stays text, in every field of every
tab; and a saved form, a TOML file or further flags of somebody else name no code and no other program."""

import json
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from gui_bench import Bench

from kohya_gui import checks, command, command_line, configs, launch_args, paths, tools, tools_captions
from kohya_gui.prepare import tags
from kohya_gui.supervisor import read_json, write_json
from sd_scripts.networks.plugin import REGISTRY
from sd_scripts.schema import rules_plugins
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.parse import parse
from sd_scripts.schema.tabs import TABS, tab_fields
from sd_scripts.training.optimizer_table import PACKAGES
from sd_scripts.training.schedulers import KNOWN_PACKAGES

STRINGS = (
    "$(touch pwned)", "`touch pwned`", "; touch pwned", "a && touch pwned", "a | touch pwned", "a\ntouch pwned",
    "'; touch pwned; '", '" && touch pwned && "', "%PATH%", "${IFS}touch${IFS}pwned", "--network_module=evil",
    "--job_dir", "-c import os", "ünïcødé \u202e\u2028 \U0001f600", "a\0b", "\\", "'''", '"""', "]\n[other]\nkey = 1",
    "#", "!ls", "^&echo", "~", "{0}", "%s%n", "\x1b[31m", "\r\n", "=", "--",
)  # fmt: skip
ALL = "$(touch x)`touch x`;&&|'\"\\ %PATH% ${IFS} # ]\n[t]\nallow_plugins = true\n--network_module=evil é\u202e\t\r"
# what the fields of the launcher may add themselves
LAUNCHER = ("--multi_gpu", "--main_process_ip", "--main_process_port")
TEXT = ("str", "list[str]")


def text_fields() -> list[tuple[str, str]]:
    """(tab, key) of everything a person can write words into."""
    return [
        (name, key)
        for name in TABS
        for key, field in tab_fields(name).items()
        if field.type in TEXT and key not in ("additional_parameters", "extra_accelerate_launch_args")
    ]


def looked_at(tab: str, values: dict[str, Any], text: str) -> bool:
    """Build the command: the text is whole in one place, or there is an error in a sentence (then False)."""
    try:
        plan = command.build(TABS[tab].command, values, job_dir=Path("job"), on_cpu=True)
    except UserError:
        return False
    usual = command.build(TABS[tab].command, {}, job_dir=Path("job"), on_cpu=True)
    new = [part for part in plan.argv if part not in usual.argv]
    scripts = [part for part in plan.argv if part.endswith(".py") and "sd_scripts" in part]
    assert len(scripts) == 1, "another script would run"
    for part in new:
        assert part == text or not part.startswith("-") or part in LAUNCHER, part
    assert not any(part == text for part in new if text.startswith("-")), "a value would count as a flag"
    assert plan.argv[-2:] == ["--config_file", str(Path("job/config.toml"))]
    read = tomllib.loads(plan.toml_text)
    assert read == plan.toml and not set(read) & {"allow_plugins", "t", "other", "config_file"}
    assert read["job_dir"] == "job"
    line = shlex.split(plan.line(windows=False))
    assert line[-len(plan.argv) :] == plan.argv, "the line to copy runs something else"
    return True


@pytest.mark.parametrize("tab", list(TABS))
def test_every_text_field_of_a_tab(tab: str) -> None:
    keys = [key for name, key in text_fields() if name == tab]
    assert len(keys) > 30
    for key in keys:
        value = [ALL] if tab_fields(tab)[key].type == "list[str]" else ALL
        looked_at(tab, {key: value}, ALL)


@pytest.mark.parametrize("key", ["training_comment", "output_name", "train_data_dir", "main_process_ip", "gpu_ids"])
def test_every_string_in_fields_of_each_kind(key: str) -> None:
    built = [looked_at("lora", {key: text, "num_machines": 2, "num_processes": 2}, text) for text in STRINGS]
    assert any(built) or key in ("main_process_ip", "gpu_ids")


def test_what_begins_like_a_flag_is_no_argument_of_the_launcher() -> None:
    for key in ("main_process_ip", "gpu_ids", "dynamo_mode", "mixed_precision"):
        for text in ("--module", "--no_python", "-m", "--config_file=/x", "a b", "$(id)"):
            values = {key: text, "torch_compile": True, "num_machines": 2, "num_processes": 2}
            with pytest.raises(UserError):
                command.build("train_network", values)


@pytest.mark.parametrize("address", ["evil.example", "8.8.8.8", "2001:4860:4860::8888", "local.evil.example"])
def test_a_form_leads_to_no_machine_in_the_internet(address: str) -> None:
    values = {"main_process_ip": address, "num_machines": 2, "machine_rank": 1}
    with pytest.raises(UserError, match="local network"):
        command.build("train_network", values)
    assert address in command.build("train_network", values, allow_plugins=True).argv
    for near in ("192.168.1.2", "127.0.0.1", "::1", "fe80::1", "gpu-box", "gpu.local", "100.64.1.1"):
        assert near in command.build("train_network", {**values, "main_process_ip": near}).argv


@pytest.mark.parametrize(
    "text",
    [
        "--module", "-m", "--no_python", "--use_mpirun", "--tpu_use_cluster", "--command_file x", "evil.py",
        "--main_training_function x", "--env PATH=/x", "--tpu_command x", "--python /x", "-c", "--num_processes 9",
        "--log_dir", "--log_dir --module", "--log_dir=a --module=b", "'--module'", "--MODULE", "-- evil.py",
        "--debug=evil.py", "--rdzv_conf a evil.py", "--mod", "--deepspeed_exclusion_filter x",
    ],
)  # fmt: skip
def test_launch_arguments_name_no_other_program(text: str) -> None:
    with pytest.raises(UserError):
        launch_args.extra_arguments(text)


@pytest.mark.parametrize(
    "text",
    [
        "--allow_plugins", "--job_dir /x", "--config_file /x.toml", "--output_config", "--allow_p", "--config_f x",
        "--job_d=/x", "evil.py", "; id", "$(id)", "--unknown x", "-m evil", "--job_dir", "'--allow_plugins'",
    ],
)  # fmt: skip
@pytest.mark.parametrize("tab", list(TABS))
def test_further_flags_change_neither_script_nor_permission(tab: str, text: str) -> None:
    with pytest.raises(UserError):
        command.build(TABS[tab].command, {"additional_parameters": text})


FOREIGN = {
    "network_module": "evil.network",
    "optimizer_type": "evil.Optimizer",
    "lr_scheduler_type": "evil.Scheduler",
    "dataset_class": "evil.Dataset",
}


def trainer_keys() -> list[tuple[str, str, str]]:
    """(tab, key, class) wherever a trainer of a tab takes the name of a class."""
    from sd_scripts.schema.fields import trainer_fields

    return [
        (name, key, value)
        for name, tab in TABS.items()
        for key, value in FOREIGN.items()
        if key in trainer_fields(tab.command)
    ]


@pytest.mark.parametrize(("tab", "key", "value"), trainer_keys())
@pytest.mark.parametrize("way", ["field", "flags", "file"])
def test_no_form_names_foreign_code(tab: str, key: str, value: str, way: str) -> None:
    name = TABS[tab].command
    given: dict[str, Any] = {key: value} if way != "flags" else {"additional_parameters": f"--{key} {value}"}
    if "LoRA_type" in tab_fields(tab):
        given["LoRA_type"] = "Custom" if key == "network_module" else "Standard"
    if way == "file":
        given = dict(configs.open_text(json.dumps({**given, "allow_plugins": True}), tab).values)
    view = checks.plan(name, given)
    assert any(p.severity == "error" and p.key in (key, "additional_parameters") for p in view.problems), given
    assert not view.can_start
    # and if somebody starts it all the same, the trainer says no before it imports anything
    try:
        built = command.build(name, given)
    except UserError:
        return
    with pytest.raises(UserError, match="allow_plugins"):
        parse(name, [word for key, item in built.toml.items() if key in FOREIGN for word in (f"--{key}", str(item))])
    assert "evil" not in sys.modules


@pytest.mark.parametrize(("tab", "key", "value"), trainer_keys())
def test_a_toml_file_cannot_allow_itself(tmp_path: Path, tab: str, key: str, value: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f'{key} = "{value}"\nallow_plugins = true\n')
    with pytest.raises(UserError, match="allow_plugins"):
        parse(TABS[tab].command, ["--config_file", str(file)])
    file.write_text(f'{key} = "{value}"\n')
    with pytest.raises(UserError, match="allow_plugins"):
        parse(TABS[tab].command, ["--config_file", str(file)])


def test_the_page_knows_the_packages_that_the_trainer_knows() -> None:
    assert set(rules_plugins.OPTIMIZER_PACKAGES) == set(PACKAGES)
    assert rules_plugins.SCHEDULER_PACKAGES == KNOWN_PACKAGES
    assert set(rules_plugins.NETWORK_MODULES) == set(REGISTRY)


def test_words_reach_a_real_process_through_the_supervisor_as_they_are(bench: Bench) -> None:
    """No shell stands between: a process writes down what it was given."""
    values = {"output_dir": str(bench.folder / "out"), "training_comment": ALL, "output_name": "$(touch pwned)"}
    job = bench.store.create(command.build("train_network", values), values, "`touch pwned`; $(id) ../../x\n")
    assert job.folder.parent == bench.store.root
    spec = read_json(job.folder / "spec.json")
    assert spec is not None
    out = bench.folder / "given.json"
    code = "import json, pathlib, sys, tomllib; a = sys.argv; c = pathlib.Path(a[-1]).read_text('utf-8');"
    code += "pathlib.Path(a[1]).write_text(json.dumps([a[2:-2], tomllib.loads(c)]))"
    strings = [text for text in STRINGS if "\0" not in text]
    spec["argv"] = [sys.executable, "-c", code, str(out), *strings, *spec["argv"][-2:]]
    write_json(job.folder / "spec.json", spec)
    bench.store._specs.pop(job.id, None)
    bench.store.tick()
    assert bench.wait(job.id, "done", "failed") and out.exists(), bench.store.log(job.id)
    given, toml = json.loads(out.read_text())
    assert given == strings
    assert toml["training_comment"] == ALL and toml["output_name"] == "$(touch pwned)"
    assert not list(bench.folder.rglob("pwned")) and not (command.PROJECT / "pwned").exists()


@pytest.mark.parametrize("text", [text for text in STRINGS if "\0" not in text and "\n" not in text])
def test_the_line_to_copy_keeps_every_word(text: str) -> None:
    line = command_line.printable(["python", text, "end"], {"NAME": text}, False, [])
    assert shlex.split(line)[-3:] == ["python", text, "end"]


@pytest.mark.parametrize("text", ["txt", ".txt", ".wd14.txt", "blip-2.caption", ".Caption"])
def test_captions_may_have_their_usual_endings_and_two_parts(text: str) -> None:
    assert paths.caption_ending(text, "caption_ext") == "." + text.lstrip(".")


@pytest.mark.parametrize(
    "text",
    [
        ".py",
        "sh",
        ".bat",
        ".json",
        ".toml",
        ".png",
        "/../x.txt",
        ".txt/..",
        "",
        ".",
        ".PY ",
        ".txt.py",
        "./a.txt",
        ".a.b.txt",
    ],
)
def test_no_caption_is_written_as_a_program(text: str) -> None:
    with pytest.raises(UserError):
        paths.caption_ending(text, "caption_ext")
    for name, tool in tools.TOOLS.items():
        for key in tools.tool_fields(tool):
            if text and key in tools._ENDINGS:
                with pytest.raises(UserError, match="ending"):
                    tools.build(tool.command, {key: text, tool.folder: "pictures", "images_dir": "x"} | {key: text})
                assert name
    if text:
        with pytest.raises(UserError, match="ending"):
            tags.ending(text)


@pytest.mark.parametrize("name", [tool.name for tool in tools_captions.TOOLS])
def test_every_text_field_of_a_tool(name: str) -> None:
    tool = tools.TOOLS[name]
    known = tools.tool_fields(tool)
    folders = {key: "pictures" for key, option in known.items() if not option.flag}
    for key, option in known.items():
        for text in (ALL, "--job_dir=/x", "-c", "$(id)"):
            if option.type not in TEXT:
                continue
            try:
                plan = tools.build(tool.command, {**folders, key: [text] if option.type != "str" else text})
            except UserError:
                continue
            script, rest = plan.argv[1], plan.argv[2:]
            assert script == str(command.PROJECT / tool.script) and rest[:2] == ["--job_dir", "JOB_FOLDER"]
            flags, places = rest[2 : rest.index("--")], rest[rest.index("--") + 1 :]
            names = [part.removeprefix("--").partition("=")[0] for part in flags if part.startswith("--")]
            assert len(names) == len(flags) and set(names) <= {*known, *tool.sent}
            arrived = text in places or f"--{key}={text}" in flags
            assert len(places) == len(folders) and (arrived or option.when is not None)


@pytest.mark.parametrize("name", ["x.py", "../x.json", "a/b.json", ".json", "x.sh", "con\0.json", "x.json\n"])
def test_the_lists_of_finetune_have_plain_names(name: str) -> None:
    values = {"train_dir": "t", "train_data_dir": "d", "pretrained_model_name_or_path": "m"}
    values["caption_metadata_filename"] = name
    with pytest.raises(UserError):
        command.build("fine_tune", values)
    values["caption_metadata_filename"] = "lists.json"
    assert "lists.json" in repr(command.build("fine_tune", values).before)
