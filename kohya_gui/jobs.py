"""The jobs of this machine: a job is a folder, the folder is the truth, and any number of pages may look at it.

Nothing about a job is remembered here that its folder does not hold; what is kept in memory is only what was already
read. So a reload, a second browser, a second page process and a restart are the same case.
"""

import os
import re
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_gui import command, job_again, job_plan, job_process, job_summary, job_view, supervisor, tools
from kohya_gui.job_folder import CONTROL, EVENTS, folder_name, told, write_command
from kohya_gui.job_log import Curves, JobLog, console_lines, pace
from kohya_gui.job_queue import QueueFile, clash, has_room
from kohya_gui.job_view import JobView
from kohya_gui.secret_store import SecretStore
from kohya_gui.speeds import SpeedHistory
from kohya_gui.supervisor import read_json, write_json
from sd_scripts.events import REQUESTS, Control
from sd_scripts.schema.errors import UserError

LOCK_SECONDS = 10.0
MOST_JOBS = 2000
# the method `list` hides the type inside the class
Views = list[JobView]
Ids = list[str]
EventList = list[dict[str, Any]]
_ID = re.compile(r"^[0-9a-f]{8}$")


@dataclass(frozen=True)
class Job:
    """A job just made or found: its id (eight hexadecimal digits), shown name and folder."""

    id: str
    name: str
    folder: Path


class JobStore:
    """All jobs below one folder. Safe to use from several threads, page sessions and processes.

    Args:
        root: the folder of the job folders; made if missing.
        allow_plugins: jobs may load foreign network, optimizer and dataset classes.
    """

    def __init__(self, root: Path, allow_plugins: bool = False) -> None:
        self.allow_plugins = allow_plugins
        self.root = Path(root).resolve()
        self.root.mkdir(parents=True, exist_ok=True)
        self.secrets = SecretStore(self.root)
        self.speeds = SpeedHistory(self.root / ".speeds.json")
        self._measured: set[str] | None = None
        self._queue = QueueFile(self.root)
        self._memory = threading.Lock()
        self._logs: dict[str, JobLog] = {}
        self._specs: dict[str, dict[str, Any]] = {}
        self._over: dict[str, JobView] = {}
        self._children: list[subprocess.Popen[bytes]] = []

    # ---- making

    def create(self, plan: "command.Plan", values: Mapping[str, Any], name: str, *, initial_step: int = 0) -> Job:
        """Make the folder of a new job and put it at the end of the queue; `tick` or `start` starts it.

        Args:
            plan: what `command.build` made of the values; it is made again for the job's own folder.
            values: the form's values; secrets among them go into the secret store, not into the folder.
            name: shown name.
            initial_step: the step a resumed job goes on from, for showing.

        Raises:
            UserError: if the values make no command, too many jobs lie in the folder, one that is not over writes the
                same files, or the disk takes no more.
        """
        if len(self._folders()) >= MOST_JOBS:
            raise UserError(f"There are already {MOST_JOBS} jobs.", hint="Remove some that are over.")
        others = [self.spec(view.id) for view in self.list() if not view.over]
        job_plan.refuse_clash(plan.command, values, [(str(o["command"]), o.get("values") or {}) for o in others])
        moment = time.time()
        job_id = uuid.uuid4().hex[:8]
        folder = self.root / folder_name(name, job_id, moment)
        bound = job_plan.build(plan.command, values, job_dir=folder, allow_plugins=self.allow_plugins)
        with told(f"The job's folder {folder} cannot be written"):
            write_command(folder, bound)
            self.secrets.keep(job_id, bound.secrets)
        spec = {"id": job_id, "name": name, "initial_step": initial_step, "created": moment}
        spec |= job_plan.spec(bound, values, folder)
        with self._locked(), told(f"The job's folder {folder} cannot be written"):
            # the spec makes the folder a job, so it is written last
            write_json(folder / supervisor.SPEC, spec)
            self._queue.append(self._waiting(), job_id)
        return Job(job_id, name, folder)

    def start(self, job: "Job | str") -> None:
        """Start a waiting job now, ahead of the queue.

        Raises:
            UserError: if it does not wait, or a job on the same GPUs runs.
        """
        folder, spec = self._find(job if isinstance(job, str) else job.id)
        with self._locked():
            if (folder / job_process.LAUNCHED).exists():
                raise UserError(f"{spec['name']!r} has been started already.", hint="Use resume or run again.")
            busy = [view for view in self.list() if view.running and clash(view.gpu_set, str(spec["gpu_set"]))]
            if busy:
                raise UserError(
                    f"{busy[0].name!r} runs on the same GPU.", hint="Leave this job in the queue, or stop that one."
                )
            self._launch(folder, spec)

    def tick(self) -> Ids:
        """Start every waiting job whose GPUs are free, in order; the ids started. May be called at any time."""
        self._reap()
        lock = job_process.FileLock(self.root / ".lock")
        if not lock.take(0.0):
            # another page is at it right now
            return []
        started = []
        try:
            views = self.list()
            self._measure(views)
            if self._queue.held:
                return []
            busy = [view.gpu_set for view in views if view.running]
            # one without a place has lost files of its folder, such as the note that it was started
            for view in sorted((v for v in views if v.position), key=lambda v: v.position or 0):
                if has_room(view.gpu_set, busy):
                    folder, spec = self._find(view.id)
                    self._launch(folder, spec)
                    started.append(view.id)
                # a job that must wait keeps its GPUs: later ones on the same do not overtake it
                busy.append(view.gpu_set)
        finally:
            lock.release()
        return started

    def _launch(self, folder: Path, spec: Mapping[str, Any]) -> None:
        self._queue.drop(self._waiting(), str(spec["id"]))
        extra = {str(k): str(v) for k, v in (spec.get("env") or {}).items()}
        extra |= self.secrets.environment(str(spec["id"]), spec.get("secrets") or [])
        try:
            self._children.append(job_process.launch(folder, job_process.clean_environment(os.environ, extra)))
        except OSError as error:
            message = f"The job could not be started: {error.strerror or error}."
            with told(message):
                write_json(folder / supervisor.EXIT, {"code": None, "message": message, "ended": time.time()})

    def _measure(self, views: Views) -> None:
        """Remember how fast finished jobs were, for the time in later plans."""
        if self._measured is None:
            self._measured = self.speeds.known()
        for view in views:
            if view.state == "done" and view.id not in self._measured:
                self._measured.add(view.id)
                found = pace(self._log(view.id, view.folder).refresh(), view.started)
                if found is not None:
                    self.speeds.learn(view.id, self.spec(view.id), *found)

    def _reap(self) -> None:
        self._children = [child for child in self._children if child.poll() is None]

    # ---- looking

    def list(self) -> Views:
        """Every job: running ones first, then waiting ones in their order, then the rest, newest first."""
        folders = self._folders()
        waiting = self._queue.order(self._waiting(folders))
        views = [
            view for job_id, folder in folders.items() if (view := self._view(job_id, folder, waiting)) is not None
        ]
        rank = dict.fromkeys(job_view.RUNNING, 0) | {"waiting": 1}
        return sorted(views, key=lambda v: (rank.get(v.state, 2), v.position or 0, -v.created))

    def get(self, job_id: str) -> JobView:
        """One job.

        Raises:
            UserError: if there is none with this id.
        """
        folder, _ = self._find(job_id)
        view = self._view(job_id, folder, self._queue.order(self._waiting()))
        if view is None:
            raise UserError("This job's folder cannot be read.", hint="It may have been removed; reload the page.")
        return view

    def _view(self, job_id: str, folder: Path, waiting: Ids) -> JobView | None:
        if job_id in self._over:
            return self._over[job_id]
        spec = self._spec(job_id, folder)
        if spec is None:
            return None
        view = job_summary.read(folder, spec)
        if view is None:
            position = waiting.index(job_id) + 1 if job_id in waiting else None
            view = job_view.view_of(folder, spec, self._log(job_id, folder).refresh(), position)
            if not view.over or not (folder / supervisor.EXIT).exists():
                return view
            job_summary.write(folder, view)
        # nothing in this folder changes any more
        self._over[job_id] = view
        return view

    def events(self, job_id: str, offset: int = 0) -> tuple[EventList, int]:
        """The events after a byte offset and the offset to go on from."""
        from sd_scripts.events import read_events

        return read_events(self._find(job_id)[0] / EVENTS, offset)

    def curves(self, job_id: str, most: int = 1000, smoothing: float = 0.95) -> Curves:
        """The series of a job for its charts."""
        folder, _ = self._find(job_id)
        return self._log(job_id, folder).refresh().curves(most, smoothing)

    def log(self, job_id: str, tail: int = 200, search: str = "") -> str:
        """The last lines of the console, or of those lines the ones that hold `search` (any case)."""
        lines = console_lines(self._find(job_id)[0] / supervisor.CONSOLE, 0 if search else tail)
        if search:
            lines = [line for line in lines if search.casefold() in line.casefold()][-tail:]
        return "\n".join(lines)

    def values(self, job_id: str) -> dict[str, Any]:
        """The form's values the job was made from (no secrets)."""
        return dict(self._find(job_id)[1].get("values") or {})

    def spec(self, job_id: str) -> dict[str, Any]:
        """The job's spec.json: argv, env, values and times."""
        return dict(self._find(job_id)[1])

    # ---- asking

    def request(self, job_id: str, name: str) -> None:
        """Ask the trainer to "stop" (finish the step, save the state), "save" or "sample".

        Raises:
            UserError: if the job does not run.
        """
        if name not in REQUESTS:
            raise UserError(f"{name!r} cannot be asked of a job; {', '.join(REQUESTS)} can.")
        view = self.get(job_id)
        if not view.running:
            raise UserError(f"{view.name!r} is not running ({view.state}).", hint=_WAY_OUT.get(view.state, ""))
        Control(view.folder / CONTROL).request(name)
        if name == "stop" and view.asked != "kill":
            write_json(view.folder / job_view.REQUESTS_FILE, {"name": name, "time": time.time()})

    def kill(self, job_id: str, grace: float = supervisor.DEFAULT_GRACE) -> None:
        """End the job's processes: politely first, by force after `grace` seconds. Returns at once.

        Raises:
            UserError: if the job does not run.
        """
        view = self.get(job_id)
        if not view.running:
            raise UserError(f"{view.name!r} is not running ({view.state}).", hint=_WAY_OUT.get(view.state, ""))
        write_json(view.folder / job_view.REQUESTS_FILE, {"name": "kill", "time": time.time()})
        job_process.kill(view.folder, grace)

    def resume(self, job_id: str) -> Job:
        """A new job that goes on from this one's newest complete state, or starts over if there is none; queued.

        Raises:
            UserError: if the job still runs or waits, or is complete.
        """
        view = self.get(job_id)
        log = self._log(job_id, view.folder).refresh()
        values, step = job_again.resumed(view, self.spec(job_id), log)
        return self._again(job_id, values, step)

    def run_again(self, job_id: str) -> Job:
        """A new job with the same values, queued; it writes beside the files of the first, not over them."""
        values = self.values(job_id)
        if not self.get(job_id).tool:
            taken = [self.values(view.id) for view in self.list() if not view.over and not view.tool]
            values = job_again.beside(values, taken)
        return self._again(job_id, values, 0)

    def _again(self, job_id: str, values: dict[str, Any], initial_step: int) -> Job:
        spec = self.spec(job_id)
        values |= self.secrets.values(job_id, spec.get("secrets") or [])
        plan = job_plan.build(str(spec["command"]), values, allow_plugins=self.allow_plugins)
        name = str((not tools.is_tool(plan.command) and values.get("output_name")) or spec["name"])
        return self.create(plan, values, name, initial_step=initial_step)

    def move(self, job_id: str, direction: str) -> None:
        """Move a waiting job "up" (earlier) or "down".

        Raises:
            UserError: if it does not wait.
        """
        with self._locked():
            waiting = self._waiting()
            if job_id not in waiting:
                raise UserError("Only a waiting job can be moved.")
            self._queue.move(waiting, job_id, {"up": -1, "down": 1}[direction])

    def hold(self, held: bool) -> None:
        """Keep the queue from starting jobs, or let it go on."""
        with self._locked():
            self._queue.hold(held)

    @property
    def held(self) -> bool:
        """Whether the queue is held."""
        return self._queue.held

    def remove(self, job_id: str) -> None:
        """Delete the job's own folder (log, events, command); files it wrote into the output folder stay.

        Raises:
            UserError: if it runs.
        """
        with self._locked():
            view = self.get(job_id)
            if view.running:
                raise UserError(f"{view.name!r} is running.", hint="Stop it first.")
            # renamed first, so that a page that is just reading sees the job whole or not at all
            gone = view.folder.with_name(f".removed-{view.folder.name}")
            view.folder.rename(gone)
            self._queue.drop(self._waiting(), job_id)
        shutil.rmtree(gone)
        self.secrets.forget(job_id)
        with self._memory:
            for cache in (self._logs, self._specs, self._over):
                cache.pop(job_id, None)

    # ---- inside

    def _folders(self) -> dict[str, Path]:
        """Job id -> folder, oldest first."""
        found = {}
        for entry in sorted(os.scandir(self.root), key=lambda item: item.name):
            job_id = entry.name.rpartition("-")[2]
            if _ID.match(job_id) and not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                found[job_id] = Path(entry.path)
        return found

    def _waiting(self, folders: dict[str, Path] | None = None) -> Ids:
        present = self._folders() if folders is None else folders
        return [
            job_id
            for job_id, folder in present.items()
            if job_id not in self._over
            and (folder / supervisor.SPEC).exists()
            and not (folder / job_process.LAUNCHED).exists()
            and not (folder / supervisor.EXIT).exists()
        ]

    def _find(self, job_id: str) -> tuple[Path, dict[str, Any]]:
        folder = self._folders().get(job_id)
        spec = self._spec(job_id, folder) if folder else None
        if folder is None or spec is None:
            raise UserError("There is no such job.", hint="It may have been removed; reload the page.")
        return folder, spec

    def _spec(self, job_id: str, folder: Path) -> dict[str, Any] | None:
        if job_id not in self._specs:
            spec = read_json(folder / supervisor.SPEC)
            if spec is None or spec.get("id") != job_id:
                return None
            with self._memory:
                self._specs[job_id] = spec
        return self._specs[job_id]

    def _log(self, job_id: str, folder: Path) -> JobLog:
        with self._memory:
            return self._logs.setdefault(job_id, JobLog(folder / EVENTS))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = job_process.FileLock(self.root / ".lock")
        if not lock.take(LOCK_SECONDS):
            raise UserError("Another page is changing the jobs.", hint="Try again in a moment.")
        try:
            yield
        finally:
            lock.release()


_WAY_OUT = {"waiting": "Remove it from the queue instead.", "interrupted": "Resume it or run it again."}
