"""The page's work without the page: check, print or run a saved form, and look after jobs, from a terminal.

Exit codes: 0 all is well, 1 something stands in the way or the run failed, 2 the command line or the file is wrong,
130 interrupted.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_gui import checks, command, configs, user_presets
from kohya_gui.estimate import bytes_text, time_text
from kohya_gui.job_view import JobView
from kohya_gui.jobs import JobStore
from kohya_gui.layouts.shared import SET_BY_PAGE
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import convert
from sd_scripts.schema.suggest import nearest
from sd_scripts.schema.tabs import TABS, tab_aliases, tab_options

COMMANDS = ("train", "command", "check", "jobs")
INTERRUPTED = 130
PRESET = "preset:"
_POLL_SECONDS = 0.5
_JOB_ACTIONS = ("list", "show", "log", "stop", "save", "sample", "kill", "resume", "again", "up", "down", "remove")


@dataclass(frozen=True)
class Form:
    """A form to work with: its tab, its values with the changes of the command line, what opening it had to say."""

    tab: str
    values: dict[str, Any]
    report: list[configs.ReportLine]

    @property
    def command(self) -> str:
        """The tab's own command."""
        return configs.command_of(self.tab)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the subcommands."""
    parser = argparse.ArgumentParser(prog="kohya_gui.py", description="Train and look after jobs without the page.")
    parser.add_argument("--jobs_dir", type=Path, default=command.PROJECT / "jobs", help="folder of the job folders")
    actions = parser.add_subparsers(dest="action", required=True)
    for name, text in (
        ("train", "train with a saved form and wait for the end"),
        ("command", "print the command and its TOML, without running it"),
        ("check", "say what would be done and what stands in its way"),
    ):
        _form_arguments(actions.add_parser(name, help=text, description=text))
    _arguments_of_one(actions.choices)
    jobs = actions.add_parser("jobs", help="list jobs, or do something with one")
    jobs.add_argument("what", nargs="?", default="list", choices=_JOB_ACTIONS, help="default: list")
    jobs.add_argument("id", nargs="?", default="", help="the job's id")
    jobs.add_argument("--json", action="store_true", help="list or show as JSON")
    for action in actions.choices.values():
        # kohya_gui.py passes on words from the subcommand's name, so the flag stands behind it
        action.add_argument("--jobs_dir", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _form_arguments(action: argparse.ArgumentParser) -> None:
    add = action.add_argument
    add("file", type=Path, help=f"a saved form of this page or of kohya_ss, a LoRA to train like, or {PRESET}NAME")
    add("changes", nargs="*", default=[], metavar="key=value", help="change options; key= empties one")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="the same as key=value")
    add("--tab", choices=tuple(TABS), help="training tab; normally told by the file")
    add("--allow_plugins", action="store_true", help="allow foreign plugins")
    add("--quiet", action="store_true", help="do not say what was renamed or repaired in the file")
    add("--json", action="store_true", help="print JSON for programs")


def _arguments_of_one(actions: dict[str, argparse.ArgumentParser]) -> None:
    add = actions["command"].add_argument
    add("--windows", action="store_true", default=None, help="print for Windows' cmd")
    add("--linux", dest="windows", action="store_false", default=None, help="print for sh (Linux and macOS)")
    add("--toml", action="store_true", help="print the TOML alone")
    add("--out", type=Path, help="write config.toml into this folder as well")
    actions["check"].add_argument("--strict", action="store_true", help="warnings count as well")
    add = actions["train"].add_argument
    add("--name", default="", help="name of the job")
    add("--no_wait", action="store_true", help="queue it and leave")
    add("--force", action="store_true", help="start in spite of what check says")


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The command line; key=value may stand before and behind flags, which argparse itself does not take apart."""
    options, rest = parser.parse_known_args(list(argv))
    strange = [word for word in rest if word.startswith("-") or "=" not in word or options.action == "jobs"]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if rest:
        options.changes = [*options.changes, *rest]
    return options


def main(argv: Sequence[str]) -> int:
    """Run a subcommand and give its exit code."""
    try:
        options = _parsed(build_parser(), argv)
    except SystemExit as leaving:
        return int(leaving.code or 0) if isinstance(leaving.code, int | None) else 2
    # the page is given the folder that holds jobs/; both spellings name the same jobs
    inner = options.jobs_dir / "jobs"
    options.jobs_dir = inner if inner.is_dir() else options.jobs_dir
    try:
        if options.action == "jobs":
            return _jobs(options)
        form = _form(options)
        act: Callable[[argparse.Namespace, Form], int] = {"check": _check, "command": _command, "train": _train}[
            options.action
        ]
        return act(options, form)
    except UserError as error:
        print(error, file=sys.stderr)
        if options.json:
            _print_json({"error": error.message, "key": error.key, "hint": error.hint})
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read the output has had enough; Python would complain once more while it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _form(options: argparse.Namespace) -> Form:
    """The form that the command line names.

    Raises:
        UserError: if the file is none, or a change names no option of its tab or no value of that option.
    """
    opened = _opened(options)
    if opened.partial and (options.file.suffix.lower() in (".json", ".toml") or len(opened.values) < 2):
        raise UserError(opened.report[0].message if opened.report else "The file is no saved form.")
    changes = _changes(opened.tab, [*options.set, *options.changes])
    values = {**opened.values, **changes}
    if {"v2", "sdxl"} & changes.keys() and "model_family" not in changes:
        # the trainers' own switches, as scripts give them, go before what the file chose
        values.pop("model_family", None)
    if not options.quiet:
        for line in opened.report:
            print(f"{line.kind}: {line.message}", file=sys.stderr)
    return Form(opened.tab, values, opened.report)


def _opened(options: argparse.Namespace) -> configs.Opened:
    if not str(options.file).startswith(PRESET):
        return configs.open_file(options.file, options.tab)
    # the page keeps its own files beside the folder of jobs
    home = options.jobs_dir.parent if options.jobs_dir.name == "jobs" else options.jobs_dir
    tabs = (options.tab,) if options.tab else tuple(TABS)
    tab, preset = user_presets.find(home, str(options.file).removeprefix(PRESET), tabs)
    return configs.open_file(preset.path, tab)


def _changes(tab: str, items: Sequence[str]) -> dict[str, Any]:
    known, older = tab_options(tab), tab_aliases(tab)
    changes: dict[str, Any] = {}
    for item in items:
        name, sign, value = item.partition("=")
        key = older.get(name, name)
        if not sign:
            raise UserError(f"{item!r} changes no option.", hint="Write it as key=value.")
        if key in SET_BY_PAGE:
            hint = "Use --allow_plugins." if key == "allow_plugins" else "Leave it out."
            raise UserError(f"{key} cannot be set here.", key, hint)
        if key not in known:
            raise UserError(f"The {TABS[tab].title} tab has no option {name!r}.", hint=nearest(name, known))
        changes[key] = convert(known[key], value, "on the command line") if value else None
    return changes


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1, default=str))


def _check(options: argparse.Namespace, form: Form) -> int:
    view = _plan(options, form)
    if options.json:
        _print_json(_plan_facts(form, view))
    else:
        _say_plan(view, sys.stdout)
    fine = view.can_start and not (options.strict and view.problems)
    return 0 if fine else 1


def _plan(options: argparse.Namespace, form: Form) -> checks.PlanView:
    history = JobStore(options.jobs_dir).speeds if options.jobs_dir.is_dir() else None
    return checks.plan(form.command, form.values, history=history, allow_plugins=options.allow_plugins)


def _say_plan(view: checks.PlanView, where: Any) -> None:
    width = max((len(label) for label, _ in view.lines), default=0)
    for label, text in view.lines:
        print(f"{label:<{width}}  {text}", file=where)
    for problem in view.problems:
        sign = "x" if problem.severity == "error" else "!"
        key = f" [{problem.key}]" if problem.key else ""
        print(f"{sign} {problem.message} {problem.hint}".rstrip() + key, file=where)


def _plan_facts(form: Form, view: checks.PlanView) -> dict[str, Any]:
    return {
        "tab": form.tab,
        "trainer": command.trainer(form.command, form.values) if view.plan else "",
        "can_start": view.can_start,
        "steps": view.steps,
        "epochs": view.epochs,
        "images": view.images,
        "seconds": view.seconds,
        "plan": [{"label": label, "text": text} for label, text in view.lines],
        "problems": [
            {"severity": item.severity, "key": item.key, "message": item.message, "hint": item.hint}
            for item in view.problems
        ],
        "report": [{"kind": line.kind, "key": line.key, "message": line.message} for line in form.report],
    }


def _command(options: argparse.Namespace, form: Form) -> int:
    folder = options.out.resolve() if options.out else None
    plan = command.build(form.command, form.values, job_dir=folder, allow_plugins=options.allow_plugins)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in {command.CONFIG_FILE: plan.toml_text, **plan.files}.items():
            (folder / file).write_text(text, encoding="utf-8", newline="\n")
    if options.json:
        _print_json(_command_facts(options, form, plan))
        return 0
    if options.toml:
        print(plan.toml_text, end="")
        return 0
    print(plan.line(windows=options.windows))
    print()
    print(f"# {command.CONFIG_FILE}")
    print(plan.toml_text, end="")
    for file, text in plan.files.items():
        print(f"\n# {file}\n{text}", end="")
    for note in plan.notes:
        print(note, file=sys.stderr)
    if plan.secrets:
        print(f"Set before running: {', '.join(sorted(plan.secrets))}", file=sys.stderr)
    return 0


def _command_facts(options: argparse.Namespace, form: Form, plan: command.Plan) -> dict[str, Any]:
    return {
        "tab": form.tab,
        "trainer": command.trainer(form.command, form.values),
        "argv": plan.argv,
        "env": plan.env,
        "line": plan.line(windows=options.windows),
        "config": plan.toml,
        "toml": plan.toml_text,
        "files": plan.files,
        "before": [{"name": step.name, "argv": step.argv} for step in plan.before],
        "notes": plan.notes,
        # names only: the values belong into no output
        "secrets": sorted(plan.secrets),
    }


def _train(options: argparse.Namespace, form: Form) -> int:
    # for programs the JSON alone goes to the output
    out = sys.stderr if options.json else sys.stdout
    view = _plan(options, form)
    _say_plan(view, out)
    if not view.can_start and not options.force:
        if options.json:
            _print_json(_plan_facts(form, view))
        return 1
    store = JobStore(options.jobs_dir, allow_plugins=options.allow_plugins)
    plan = command.build(form.command, form.values, allow_plugins=options.allow_plugins)
    job = store.create(plan, form.values, options.name or str(form.values.get("output_name") or "job"))
    store.tick()
    print(f"job {job.id} in {job.folder}", flush=True, file=out)
    try:
        code = 0 if options.no_wait else _follow(store, job.id, out)
    except KeyboardInterrupt:
        print(
            f"\nThe training goes on. Look at it with: jobs log {job.id}; end it with: jobs stop {job.id}",
            file=sys.stderr,
        )
        code = INTERRUPTED
    if options.json:
        _print_json(_plain(store.get(job.id)))
    return code


def _follow(store: JobStore, job_id: str, out: Any = None) -> int:
    """Print what happens until the job is over."""
    said, files = "", 0
    while True:
        store.tick()
        view = store.get(job_id)
        if (now := _progress(view)) != said:
            print(now, flush=True, file=out)
            said = now
        for made in view.files[files:]:
            print(f"wrote {made.path} ({bytes_text(made.size)})", flush=True, file=out)
        files = len(view.files)
        if view.over:
            if view.error:
                print(f"{view.error} {view.hint}".strip(), file=sys.stderr)
            return 0 if view.state in ("done", "stopped") else 1
        time.sleep(_POLL_SECONDS)


def _progress(view: JobView) -> str:
    parts = [view.state]
    if view.state == "waiting":
        return f"waiting, number {view.position} in the queue"
    if view.phase and view.phase != view.state:
        counted = f" {view.phase_done}/{view.phase_of}" if view.phase_of else ""
        parts.append(view.phase + counted)
    if view.of:
        parts.append(f"{view.step}/{view.of}")
    if view.tool and view.state == "done" and view.end_reason:
        parts.append(view.end_reason)
    if view.loss is not None:
        parts.append(f"loss {view.loss:.4f}")
    if view.running and view.speed:
        parts.append(f"{view.speed:.2f} it/s" if view.speed >= 1 else f"{1 / view.speed:.1f} s/it")
    if view.running and view.eta:
        parts.append(f"{time_text(view.eta)} left")
    return " · ".join(parts)


def _jobs(options: argparse.Namespace) -> int:
    store = JobStore(options.jobs_dir)
    if options.what == "list":
        views = store.list()
        if options.json:
            print(json.dumps([_plain(view) for view in views], ensure_ascii=False, indent=1))
        if not views:
            print(f"There are no jobs in {options.jobs_dir}.", file=sys.stderr)
        for view in [] if options.json else views:
            print(f"{view.id}  {view.name:<20.20}  {_progress(view)}")
        return 0
    if not options.id:
        raise UserError(f"jobs {options.what} needs the job's id.", hint="jobs list shows them.")
    if options.what == "show":
        view = store.get(options.id)
        if options.json:
            _print_json(_plain(view))
        else:
            print(f"{view.id}  {view.name}  {_progress(view)}")
    elif options.what == "log":
        print(store.log(options.id))
    elif options.what in ("stop", "save", "sample"):
        store.request(options.id, options.what)
    elif options.what in ("up", "down"):
        store.move(options.id, options.what)
    elif options.what in ("resume", "again"):
        job = store.resume(options.id) if options.what == "resume" else store.run_again(options.id)
        store.tick()
        print(f"job {job.id} in {job.folder}")
    else:
        {"kill": store.kill, "remove": store.remove}[options.what](options.id)
    return 0


def _plain(view: JobView) -> dict[str, Any]:
    names = (
        "id",
        "name",
        "state",
        "phase",
        "step",
        "of",
        "epoch",
        "speed",
        "eta",
        "loss",
        "error",
        "hint",
        "gpu_set",
        "created",
        "tool",
        "end_reason",
    )
    return {name: getattr(view, name) for name in names} | {"folder": str(view.folder)}
