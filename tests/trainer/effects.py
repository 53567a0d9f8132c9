"""For the tests that show what each flag does: small runs to compare, and which flags a test is about."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from runs import Finished, train_here
from safetensors import safe_open

_Test = TypeVar("_Test", bound=Callable[..., Any])

# Only the first and the last of the U-Net's 25 blocks carry a network: enough to learn, and quick.
FEW_BLOCKS = "block_dims=2," + ",".join(["0"] * 23) + ",2"
SMALL = {"network_train_unet_only": True, "network_args": [FEW_BLOCKS], "max_train_steps": 1}


def shows(*flags: str, by: Sequence[str] = ("network",)) -> Callable[[_Test], _Test]:
    """Says that a test fails when one of these flags has no effect; test_flags_act.py collects them.

    `by` are the methods (`schema/commands.py`) whose trainers the test runs.
    """

    def mark(test: _Test) -> _Test:
        before = getattr(test, "shows", ())
        test.shows = (*before, *((method, flag) for method in by for flag in flags))  # type: ignore[attr-defined]
        return test

    return mark


@dataclass
class Look:
    """What --debug_dataset tells: one line a picture in the order of the batches, and the files it wrote."""

    lines: list[str]
    pictures: list[Path]
    finished: Finished

    @property
    def captions(self) -> list[str]:
        return [line.split("caption ", 1)[1].strip("'\"") for line in self.lines]

    @property
    def sizes(self) -> list[str]:
        return [line.split(" -> ")[1].split(",")[0] for line in self.lines]

    @property
    def crops(self) -> list[str]:
        return [line.split("crop ")[1].split(",")[0] for line in self.lines]

    def pixels(self) -> list[np.ndarray]:
        return [np.asarray(Image.open(path)) for path in self.pictures]


@dataclass
class Probe:
    """Makes small runs; the same call of `base` runs once only."""

    models: dict[str, Path]
    data: Path
    root: Path
    _count: Any = field(default_factory=itertools.count)
    _known: dict[str, Finished] = field(default_factory=dict)

    def __call__(self, model: str | Path = "sd1", data: Path | None = None, **options: Any) -> Finished:
        out = self.root / f"run {next(self._count)}"
        source = model if isinstance(model, Path) else self.models[model]
        return train_here(source, data or self.data, out, **{**SMALL, **options})

    def base(self, model: str = "sd1", **options: Any) -> Finished:
        key = repr((model, sorted(options.items())))
        if key not in self._known:
            self._known[key] = self(model, **options)
        assert self._known[key].code == 0
        return self._known[key]

    def trained(self, model: str | Path = "sd1", data: Path | None = None, **options: Any) -> Finished:
        """A run that must succeed."""
        finished = self(model, data, **options)
        assert finished.code == 0, finished.of("error")
        return finished

    def look(self, data: Path | None = None, **options: Any) -> Look:
        """The data set as the trainer sees it; no model is loaded for this, so it is quick."""
        log = self.root / f"look {next(self._count)}.log"
        options = {"cache_latents": None, "console_log_file": log, "debug_dataset": True, **options}
        finished = self.trained(data=data, **options)
        lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if ", crop left " in line]
        return Look(lines, sorted((finished.out / "small.run" / "dataset").glob("*.png")), finished)


def metadata(path: Path) -> dict[str, str]:
    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata() or {})


def result(finished: Finished, name: str = "small.safetensors") -> Path:
    path = finished.out / name
    assert path.is_file(), sorted(item.name for item in finished.out.iterdir())
    return path
