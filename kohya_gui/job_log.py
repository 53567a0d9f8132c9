"""What a job's events say so far: read from where the last look ended, summed up for the page."""

import re
import threading
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sd_scripts.events import read_events

Point = tuple[int, float]
MOST_LINES = 200
MOST_STEPS = (
    20_000  # read at one look: a run of 200,000 steps is there in a third of a second, its chart has 1,000 points
)
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-Z\\-_])")


@dataclass(frozen=True)
class FileMade:
    """A file or state folder that the trainer wrote. `checked`: it was opened again and found whole."""

    path: str
    step: int
    epoch: int
    size: int
    final: bool
    state: bool
    checked: bool


@dataclass(frozen=True)
class Sample:
    """A sample picture: one prompt (`index`) at one step."""

    path: str
    step: int
    epoch: int
    index: int
    prompt: str
    seed: int | None


@dataclass(frozen=True)
class Curves:
    """Series for the charts, each a list of (step, value), thinned so that the extremes survive."""

    loss: list[Point]
    smooth: list[Point]
    lr: dict[str, list[Point]]
    memory: list[Point]
    grad_norm: list[Point]
    validation: list[Point]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass
class Series:
    """Numbers over steps in the compact form that a long run needs."""

    steps: "array[int]" = field(default_factory=lambda: array("q"))
    values: "array[float]" = field(default_factory=lambda: array("d"))

    def add(self, step: int, value: Any) -> None:
        """Append a value; what is no number (a NaN became null) leaves a gap."""
        number = _number(value)
        if number is not None:
            self.steps.append(step)
            self.values.append(number)

    def thinned(self, most: int) -> list[Point]:
        """At most `most` points: of every stretch its lowest and its highest, and always the first and the last."""
        return thin(self.steps, self.values, most)

    def smoothed(self, weight: float) -> "array[float]":
        """The exponential moving average, corrected for its start.

        `weight` in 0..1 is how much of the past stays after one step; over a gap of n steps that is weight ** n, so
        that a series of which only some steps were read looks the same.
        """
        out, mean, left, before = array("d"), 0.0, 1.0, None
        for step, value in zip(self.steps, self.values):
            stays = weight ** max(step - before, 1) if before is not None else weight
            mean = stays * mean + (1 - stays) * value
            left *= stays
            before = step
            out.append(mean / (1 - left) if left < 1 else value)
        return out


def thin(steps: "array[int]", values: "array[float]", most: int) -> list[Point]:
    """At most `most` (>= 4) points of a series; see Series.thinned."""
    count = len(values)
    if count <= most:
        return list(zip(steps, values))
    stretches = max((most - 2) // 2, 1)
    kept = {0, count - 1}
    for part in range(stretches):
        first, last = part * count // stretches, (part + 1) * count // stretches
        stretch = range(first, last)
        kept.add(min(stretch, key=values.__getitem__))
        kept.add(max(stretch, key=values.__getitem__))
    return [(steps[index], values[index]) for index in sorted(kept)]


class JobLog:
    """The sum of one job's events.jsonl; `refresh` reads only what is new. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self.offset = 0
        self.start: dict[str, Any] = {}
        self.phase: dict[str, Any] = {}
        self.last: dict[str, Any] = {}
        self.end: dict[str, Any] = {}
        self.program: dict[str, Any] = {}
        self.error: dict[str, Any] = {}
        self.warnings: list[dict[str, Any]] = []
        self.files: list[FileMade] = []
        self.samples: list[Sample] = []
        self.loss, self.memory, self.grad_norm, self.validation = Series(), Series(), Series(), Series()
        self.lr: dict[str, Series] = {}
        self.first_step: dict[str, Any] = {}
        self._curves: tuple[tuple[int, int, float], Curves] | None = None

    def refresh(self) -> "JobLog":
        """Read the events written since the last call."""
        with self._lock:
            events, offset = read_events(self.path, self.offset, MOST_STEPS)
            if offset < self.offset:
                # the file was replaced: what was summed up belongs to a run that is gone
                self._reset()
                events, offset = read_events(self.path, 0, MOST_STEPS)
            self.offset = offset
            for event in events:
                self._apply(event)
        return self

    def _apply(self, event: dict[str, Any]) -> None:
        kind = event.get("kind")
        if kind == "step":
            self._step(event)
        elif kind == "start":
            self.start = event
        elif kind == "phase":
            self.phase = event
        elif kind == "validate":
            self.validation.add(_whole(event.get("step")), event.get("loss"))
        elif kind == "save":
            self.files.append(_file(event))
        elif kind == "sample":
            self.samples.append(_sample(event))
        elif kind == "warn":
            self.warnings = [*self.warnings, event][-MOST_LINES:]
        elif kind == "error":
            # the first error is the cause; later ones are usually its echo
            self.error = self.error or event
        elif kind == "end":
            self.end = event
        elif kind == "program":
            # the next of several programs begins: what the one before said of its end is no end of the job
            self.program, self.end, self.phase = event, {}, {"name": str(event.get("name", ""))}

    def _step(self, event: dict[str, Any]) -> None:
        step = _whole(event.get("step"))
        self.first_step = self.first_step or event
        self.last = event
        # a trainer that reports steps trains, whatever the last phase was called
        self.phase = {"name": "train"}
        self.loss.add(step, event.get("loss"))
        self.memory.add(step, event.get("memory"))
        self.grad_norm.add(step, event.get("grad_norm"))
        rates = event.get("lr")
        for group, rate in rates.items() if isinstance(rates, dict) else ():
            self.lr.setdefault(str(group), Series()).add(step, rate)

    def curves(self, most: int = 1000, smoothing: float = 0.95) -> Curves:
        """The series so far, at most `most` points each; all pages share them until more is read."""
        with self._lock:
            made_of = (self.offset, most, smoothing)
            if self._curves is None or self._curves[0] != made_of:
                self._curves = made_of, self._thinned(most, smoothing)
            return self._curves[1]

    def _thinned(self, most: int, smoothing: float) -> Curves:
        return Curves(
            loss=self.loss.thinned(most),
            smooth=thin(self.loss.steps, self.loss.smoothed(smoothing), most),
            lr={group: series.thinned(most) for group, series in self.lr.items()},
            memory=self.memory.thinned(most),
            grad_norm=self.grad_norm.thinned(most),
            validation=self.validation.thinned(most),
        )

    @property
    def is_last(self) -> bool:
        """Whether no further program of the job follows."""
        return not self.program or self.program.get("number") == self.program.get("of")

    @property
    def finished_well(self) -> bool:
        """The trainer said it is done and its final file was opened again and found whole."""
        return self.end.get("status") == "done" and any(made.final and made.checked for made in self.files)


def _whole(value: Any) -> int:
    number = _number(value)
    return int(number) if number is not None else 0


def _file(event: dict[str, Any]) -> FileMade:
    return FileMade(
        path=str(event.get("path", "")),
        step=_whole(event.get("step")),
        epoch=_whole(event.get("epoch")),
        size=_whole(event.get("bytes")),
        final=event.get("final") is True,
        state=event.get("state") is True,
        checked=event.get("checked") is True,
    )


def _sample(event: dict[str, Any]) -> Sample:
    seed = event.get("seed")
    return Sample(
        path=str(event.get("path", "")),
        step=_whole(event.get("step")),
        epoch=_whole(event.get("epoch")),
        index=_whole(event.get("index")),
        prompt=str(event.get("prompt", "")),
        seed=seed if isinstance(seed, int) else None,
    )


_TAIL_BYTES = 2_000_000


def console_lines(path: Path, tail: int = 200) -> list[str]:
    """The last `tail` lines of a console log as a terminal would show them: progress bars redrawn, colours gone."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    raw = text.split("\n")
    lines = []
    # every open page asks each second: only what is shown is cleaned (and one more, which may be the empty end)
    for line in raw[-tail - 1 :] if tail > 0 else raw:
        shown = _ANSI.sub("", line).rstrip("\r").rpartition("\r")[2]
        lines.append("".join(c for c in shown if c == "\t" or c >= " "))
    if lines and not lines[-1]:
        lines.pop()
    return lines[-tail:] if tail > 0 else lines


def pace(log: JobLog, started: float | None) -> tuple[float, float] | None:
    """Seconds a step, and seconds from the start to the first step; None for a run too short to tell."""
    first, last = log.first_step, log.last
    begun, ended = _number(first.get("t")), _number(last.get("t"))
    steps = _whole(last.get("step")) - _whole(first.get("step"))
    if started is None or begun is None or ended is None or steps < 5:
        return None
    return (ended - begun) / steps, max(begun - started, 0.0)
