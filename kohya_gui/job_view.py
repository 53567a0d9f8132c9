"""One job as the page shows it, worked out from its folder alone."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kohya_gui import failures, job_process, supervisor
from kohya_gui.job_log import FileMade, JobLog, Sample, console_lines
from kohya_gui.supervisor import read_json
from kohya_gui.tools import is_tool

STATES = ("waiting", "starting", "training", "saving", "working", "done", "stopped", "failed", "interrupted")
RUNNING = ("starting", "training", "saving", "working")
OVER = ("done", "stopped", "failed", "interrupted")
PROJECT = Path(__file__).resolve().parent.parent
REQUESTS_FILE = "asked.json"

PHASES = {
    "load model": "loading the model",
    "scan pictures": "looking through the pictures",
    "cache latents": "caching pictures",
    "prepare": "preparing",
    "train": "training",
    "save": "saving",
    "sample": "making sample pictures",
    "validate": "validating",
    "captions": "writing captions",
    "tagged": "tagging pictures",
    "encoded": "encoding pictures",
    "pictures written": "writing pictures",
    "modules": "working through the modules",
    "layers": "working through the layers",
    "weights": "working through the weights",
    "tensors": "working through the tensors",
    "words": "comparing words",
    "ranks": "writing the ranks",
    "megabytes written": "writing, in megabytes",
}


@dataclass(frozen=True)
class JobView:
    """What is known of a job. Times are seconds since 1970, `eta` seconds, `speed` steps per second, `memory` bytes.

    `phase` is in plain words, with `phase_done`/`phase_of` where the trainer counts. `error`, `hint` and `error_key`
    tell why it failed and which option to change. `asked` is the last request that is still open ("stop", "kill").
    `position` is the place in the queue from 1, for waiting jobs. `resume_from` is the newest complete state. A `tool`
    trains nothing: it has no steps, and its result is a sentence, `end_reason`.
    """

    id: str
    name: str
    state: str
    folder: Path
    created: float
    gpu_set: str
    phase: str = ""
    phase_done: int | None = None
    phase_of: int | None = None
    step: int = 0
    of: int = 0
    epoch: int = 0
    epochs: int = 0
    initial_step: int = 0
    speed: float | None = None
    eta: float | None = None
    loss: float | None = None
    lr: dict[str, float] = field(default_factory=dict)
    memory: float | None = None
    files: list[FileMade] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    hint: str = ""
    error_key: str | None = None
    asked: str = ""
    position: int | None = None
    started: float | None = None
    ended: float | None = None
    output_dir: str = ""
    output_name: str = ""
    resume_from: str = ""
    resume_step: int = 0
    end_reason: str = ""
    tool: bool = False

    @property
    def running(self) -> bool:
        """Whether the trainer is at work."""
        return self.state in RUNNING

    @property
    def over(self) -> bool:
        """Whether the job has come to its end, good or bad."""
        return self.state in OVER

    @property
    def fraction(self) -> float:
        """How much of the steps, or of a tool's work, is done, 0 to 1."""
        if self.tool and self.phase_of:
            return min((self.phase_done or 0) / self.phase_of, 1.0)
        return min(self.step / self.of, 1.0) if self.of else 0.0


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def state_of(folder: Path, log: JobLog, exit_: dict[str, Any] | None, tool: bool = False) -> str:
    """One of STATES."""
    if exit_ is not None:
        return _ended(exit_, log, tool)
    if not (folder / job_process.LAUNCHED).exists():
        return "waiting"
    if job_process.alive(folder):
        return _running(log, tool)
    if (folder / supervisor.EXIT).exists():
        # it ended between the two looks
        log.refresh()
    if log.end and log.is_last:
        return _ended({"code": 0 if log.end.get("status") in ("done", "stopped") else 1}, log, tool)
    return "interrupted"


def _ended(exit_: dict[str, Any], log: JobLog, tool: bool) -> str:
    if exit_.get("killed"):
        return "stopped"
    status = log.end.get("status")
    if exit_.get("code") == 0:
        if status == "stopped":
            return "stopped"
        well = status == "done" if tool else log.finished_well
        return "done" if well else "failed"
    return "stopped" if exit_.get("code") in (130, -2) and status != "failed" else "failed"


def _running(log: JobLog, tool: bool) -> str:
    if tool:
        return "working"
    name = log.phase.get("name")
    if name == "save":
        return "saving"
    return "training" if log.last or name == "train" else "starting"


def newest_state(log: JobLog) -> FileMade | None:
    """The newest complete training state that still lies on the disk."""
    # the trainer runs in the project's folder, so that is where its relative paths start
    states = [made for made in log.files if made.state and made.path and (PROJECT / made.path).is_dir()]
    return max(states, key=lambda made: made.step, default=None)


def cause(
    folder: Path, state: str, log: JobLog, exit_: dict[str, Any] | None, tool: bool = False
) -> failures.Failure | None:
    """Why the job failed or was interrupted; None in every other state."""
    if state == "interrupted" and tool:
        return failures.Failure("The machine or its processes were stopped in the middle of the work.", "Run it again.")
    if state == "interrupted":
        hint = "Resume it from its last saved state." if newest_state(log) else "No state was saved: it starts over."
        return failures.Failure("The machine or its processes were stopped in the middle of the training.", hint)
    if state != "failed":
        return None
    ended = exit_ or {}
    if ended.get("code") == 0 and tool:
        return failures.Failure("The work ended without a word.", "The log's last lines may say why.")
    if ended.get("code") == 0 and log.end.get("status") == "done" and not log.error:
        text = "The training ended, but its last file was not written or could not be read again."
        return failures.Failure(text, "Check the disk, then resume it or run it again.", "output_dir")
    console = console_lines(folder / supervisor.CONSOLE, 400)
    why = failures.explain(ended.get("code"), log.error, console, str(ended.get("message") or ""))
    step = str(ended.get("step") or "")
    return replace(why, message=f"{step}: {why.message}") if step else why


def view_of(folder: Path, spec: dict[str, Any], log: JobLog, position: int | None = None) -> JobView:
    """The view of one job folder. `spec` is its spec.json, `log` its refreshed events."""
    exit_ = read_json(folder / supervisor.EXIT)
    if exit_ is not None:
        # the trainer wrote its last events before it ended: read on, so that the end is seen with the exit
        log.refresh()
    tool = is_tool(str(spec.get("command", "")))
    state = state_of(folder, log, exit_, tool)
    if exit_ is None and state in OVER and (exit_ := read_json(folder / supervisor.EXIT)) is not None:
        # it ended between the two looks: the reason stands in the file that has just come
        state = state_of(folder, log.refresh(), exit_, tool)
    why = cause(folder, state, log, exit_, tool)
    last, phase = log.last, log.phase
    name = str(phase.get("name", ""))
    running = state in RUNNING
    newest = newest_state(log) if state in OVER else None
    launched = read_json(folder / job_process.LAUNCHED) or {}
    asked = read_json(folder / REQUESTS_FILE) or {}
    values = spec.get("values") or {}
    rates = last.get("lr")
    return JobView(
        id=str(spec["id"]),
        name=str(spec.get("name", "")),
        state=state,
        folder=folder,
        created=_number(spec.get("created")) or 0.0,
        gpu_set=str(spec.get("gpu_set", "all")),
        phase=PHASES.get(name, name) if running else "",
        phase_done=phase.get("done") if running and isinstance(phase.get("done"), int) else None,
        phase_of=phase.get("of") if running and isinstance(phase.get("of"), int) else None,
        step=int(_number(last.get("step")) or 0),
        of=int(_number(last.get("of")) or _number(log.start.get("total_steps")) or 0),
        epoch=int(_number(last.get("epoch")) or 0),
        epochs=int(_number(last.get("epochs")) or _number(log.start.get("total_epochs")) or 0),
        initial_step=int(spec.get("initial_step") or 0),
        speed=_number(last.get("speed")),
        eta=_number(last.get("eta")) if running else None,
        loss=_number(last.get("avg_loss")) or _number(last.get("loss")),
        lr={str(k): v for k, v in rates.items() if _number(v) is not None} if isinstance(rates, dict) else {},
        memory=_number(last.get("memory")),
        files=list(log.files),
        samples=list(log.samples),
        warnings=list(log.warnings),
        error=why.message if why else "",
        hint=why.hint if why else "",
        error_key=why.key if why else None,
        asked=str(asked.get("name", "")) if running else "",
        position=position if state == "waiting" else None,
        started=_number(launched.get("time")),
        ended=_number((exit_ or {}).get("ended")) or (_number(log.end.get("t")) if state in OVER else None),
        output_dir=str(values.get("output_dir", "") or log.start.get("output_dir", "")),
        output_name=str(values.get("output_name", "") or log.start.get("output_name", "")),
        resume_from=newest.path if newest else "",
        resume_step=newest.step if newest else 0,
        end_reason=str(log.end.get("reason") or ""),
        tool=tool,
    )
