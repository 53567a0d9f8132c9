"""The page's work without the page: check, print or run a saved form, and look after jobs, from a terminal."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kohya_gui import checks, command, configs
from kohya_gui.estimate import bytes_text, time_text
from kohya_gui.job_view import JobView
from kohya_gui.jobs import JobStore
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import convert, fields
from sd_scripts.schema.suggest import nearest

COMMANDS = ("train", "command", "check", "jobs")
_POLL_SECONDS = 0.5


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
        action = actions.add_parser(name, help=text)
        action.add_argument("file", type=Path, help="a saved form (of this page or of kohya_ss)")
        action.add_argument("--tab", default="lora", choices=sorted(configs.COMMANDS_OF_TABS), help="training tab")
        action.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one option")
        action.add_argument("--allow_plugins", action="store_true", help="allow foreign plugins")
    actions.choices["command"].add_argument("--windows", action="store_true", help="print for Windows' cmd")
    actions.choices["command"].add_argument("--out", type=Path, help="write config.toml into this folder as well")
    actions.choices["train"].add_argument("--name", default="", help="name of the job")
    actions.choices["train"].add_argument("--no_wait", action="store_true", help="queue it and leave")
    actions.choices["train"].add_argument("--force", action="store_true", help="start in spite of what check says")
    jobs = actions.add_parser("jobs", help="list jobs, or do something with one")
    jobs.add_argument("what", nargs="?", default="list", choices=_JOB_ACTIONS, help="default: list")
    jobs.add_argument("id", nargs="?", default="", help="the job's id")
    jobs.add_argument("--json", action="store_true", help="list as JSON")
    for action in actions.choices.values():
        # kohya_gui.py passes on words from the subcommand's name, so the flag stands behind it
        action.add_argument("--jobs_dir", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


_JOB_ACTIONS = ("list", "log", "stop", "save", "sample", "kill", "resume", "again", "up", "down", "remove")


def main(argv: Sequence[str]) -> int:
    """Run a subcommand; 0 if all is well, 1 if something stands in the way or failed, 2 for a wrong command line."""
    try:
        options = build_parser().parse_args(list(argv))
    except SystemExit as leaving:
        return int(leaving.code or 0) if isinstance(leaving.code, int | None) else 2
    # the page is given the folder that holds jobs/; both spellings name the same jobs
    inner = options.jobs_dir / "jobs"
    options.jobs_dir = inner if inner.is_dir() else options.jobs_dir
    try:
        if options.action == "jobs":
            return _jobs(options)
        opened = configs.open_file(options.file, options.tab)
        if opened.partial:
            raise UserError(opened.report[0].message if opened.report else "The file is no saved form.")
        name = configs.command_of(options.tab)
        values = {**opened.values, **_changes(name, options.set)}
        for line in opened.report:
            print(f"{line.kind}: {line.message}", file=sys.stderr)
        return {"check": _check, "command": _command, "train": _train}[options.action](options, name, values)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def _changes(name: str, items: Sequence[str]) -> dict[str, Any]:
    known = fields(name)
    changes = {}
    for item in items:
        key, sign, value = item.partition("=")
        if not sign or key not in known:
            raise UserError(f"--set {item} changes no option.", hint=nearest(key, known) or "Write it as key=value.")
        changes[key] = convert(known[key], value, "on the command line")
    return changes


def _check(options: argparse.Namespace, name: str, values: dict[str, Any]) -> int:
    history = JobStore(options.jobs_dir).speeds if options.jobs_dir.is_dir() else None
    view = checks.plan(name, values, history=history, allow_plugins=options.allow_plugins)
    width = max((len(label) for label, _ in view.lines), default=0)
    for label, text in view.lines:
        print(f"{label:<{width}}  {text}")
    for problem in view.problems:
        sign = "x" if problem.severity == "error" else "!"
        where = f" [{problem.key}]" if problem.key else ""
        print(f"{sign} {problem.message} {problem.hint}".rstrip() + where)
    return 0 if view.can_start else 1


def _command(options: argparse.Namespace, name: str, values: dict[str, Any]) -> int:
    folder = options.out.resolve() if options.out else None
    plan = command.build(name, values, job_dir=folder, allow_plugins=options.allow_plugins)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in {command.CONFIG_FILE: plan.toml_text, **plan.files}.items():
            (folder / file).write_text(text, encoding="utf-8", newline="\n")
    print(plan.line(windows=True if options.windows else None))
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


def _train(options: argparse.Namespace, name: str, values: dict[str, Any]) -> int:
    if _check(options, name, values) and not options.force:
        return 1
    store = JobStore(options.jobs_dir, allow_plugins=options.allow_plugins)
    plan = command.build(name, values, allow_plugins=options.allow_plugins)
    job = store.create(plan, values, options.name or str(values.get("output_name") or "job"))
    store.tick()
    print(f"job {job.id} in {job.folder}", flush=True)
    if options.no_wait:
        return 0
    try:
        return _follow(store, job.id)
    except KeyboardInterrupt:
        print(f"\nThe training goes on. Look at it with: jobs log {job.id}; end it with: jobs stop {job.id}")
        return 130


def _follow(store: JobStore, job_id: str) -> int:
    """Print what happens until the job is over."""
    said, files = "", 0
    while True:
        store.tick()
        view = store.get(job_id)
        if (now := _progress(view)) != said:
            print(now, flush=True)
            said = now
        for made in view.files[files:]:
            print(f"wrote {made.path} ({bytes_text(made.size)})", flush=True)
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
        for view in [] if options.json else views:
            print(f"{view.id}  {view.name:<20.20}  {_progress(view)}")
        return 0
    if not options.id:
        raise UserError(f"jobs {options.what} needs the job's id.", hint="jobs list shows them.")
    if options.what == "log":
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
    )
    return {name: getattr(view, name) for name in names} | {"folder": str(view.folder)}
