"""What the trainer foretells of a run: its memory beside what this machine has, or why it refuses to run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kohya_gui import machine
from kohya_gui.phrases import phrase
from kohya_gui.problem import Problem

_PARTS = ("weights", "gradients", "optimizer", "activations")
_TOO_MUCH, _TIGHT = 1.05, 0.92  # shares of the memory that is there
_PACES = ((3.0, 1.0), (15.0, 2.0))  # (seconds waited, seconds until asking again)
_SLOWEST_PACE = 5.0


@dataclass(frozen=True)
class Forecast:
    """What is known: `state` "working", "done", "refused" by the trainer, "failed", or "later": not asked yet, and
    `problem` says in few words when.

    `facts` are the plan's when done; `problem` is a sentence, with the option `key` and the way out `hint` when
    refused. `waited` are the seconds since the question.
    """

    state: str
    facts: Mapping[str, Any] | None = None
    problem: str = ""
    key: str | None = None
    hint: str = ""
    waited: float = 0.0

    @property
    def pace(self) -> float | None:
        """Seconds after which asking again makes sense; None if nothing more will come."""
        if self.state != "working":
            return None
        return next((pace for limit, pace in _PACES if self.waited < limit), _SLOWEST_PACE)

    @property
    def memory(self) -> Mapping[str, Any]:
        """The predicted bytes; empty while unknown."""
        return (self.facts or {}).get("memory") or {}

    @property
    def needed(self) -> int:
        """Bytes of the peak with what CUDA takes beside it; 0 while unknown."""
        return int(self.memory.get("peak", 0)) + int(self.memory.get("extra") or 0)

    def line(self, values: Mapping[str, Any]) -> str:
        """The peak in a few words; "" where there is nothing to say. `values` say which GPU is used."""
        if self.state == "working":
            return phrase("being predicted")
        if self.state == "later":
            return self.problem
        if not self.memory:
            return phrase("not known") if self.state in ("done", "failed") else ""
        there = available(self.memory, values)
        if not there:
            return phrase("about {n} GB (predicted)", n=_gb(self.needed))
        return phrase("about {n} of {m} GB (predicted)", n=_gb(self.needed), m=_gb(there))

    @property
    def details(self) -> str:
        """What the peak is made of."""
        return ", ".join(f"{name} {_gb(int(self.memory[name]))}" for name in _PARTS if name in self.memory)

    def problems(self, values: Mapping[str, Any]) -> Iterator[Problem]:
        """What stands in the way: too little memory, or the trainer's refusal."""
        if self.state == "refused":
            yield Problem("error", self.key, self.problem, self.hint)
            return
        there = available(self.memory, values) if self.memory else 0
        if not there or self.needed <= there * _TIGHT:
            return
        key, hint, fix = smaller(values)
        what = "this GPU" if self.memory.get("device") == "cuda" else "this machine"
        text = f"A step needs about {_gb(self.needed)} GB ({self.details}), and {what} has {_gb(there)} GB."
        yield Problem("error" if self.needed > there * _TOO_MUCH else "warning", key, text, hint, fix)


def available(memory: Mapping[str, Any], values: Mapping[str, Any]) -> int:
    """Bytes of the GPU that is used, or of main memory where a run computes there; 0 if unknown."""
    if memory.get("device") != "cuda":
        return machine.main_memory()
    cards = machine.gpus()
    chosen = [part.strip() for part in str(values.get("gpu_ids") or "").split(",") if part.strip().isdecimal()]
    used = [card.memory for card in cards if not chosen or str(card.index) in chosen]
    return min(used, default=0)


def smaller(values: Mapping[str, Any]) -> tuple[str, str, Mapping[str, Any]]:
    """The change that saves most memory for least loss: its option, a sentence, and the values for one click."""
    batch = int(values.get("train_batch_size") or 1)
    half = str(values.get("mixed_precision")) in ("fp16", "bf16")
    steps: tuple[tuple[bool, str, str, Mapping[str, Any]], ...] = (
        (
            not values.get("gradient_checkpointing"),
            "gradient_checkpointing",
            "Switch on gradient checkpointing.",
            {"gradient_checkpointing": True},
        ),
        (batch > 1, "train_batch_size", "Lower the batch size.", {"train_batch_size": max(batch // 2, 1)}),
        (not half, "mixed_precision", "Compute in bf16.", {"mixed_precision": "bf16"}),
        (
            not values.get("cache_latents") and not values.get("color_aug") and not values.get("random_crop"),
            "cache_latents",
            "Encode the pictures once.",
            {"cache_latents": True},
        ),
        (
            values.get("network_train_unet_only") is False,
            "network_train_unet_only",
            "Train the U-Net only.",
            {"network_train_unet_only": True},
        ),
        (
            values.get("optimizer_type") in (None, "", "AdamW"),
            "optimizer_type",
            "Choose an optimizer that keeps less, such as Adafactor.",
            {"optimizer_type": "Adafactor"},
        ),
    )
    found = next((step for step in steps if step[0]), None)
    return (found[1], found[2], found[3]) if found else ("resolution", "Lower the resolution.", {})


def _gb(size: int) -> str:
    """Gigabytes as makers of memory count them; what is there is never called nothing."""
    if 0 < size < 2**30 // 10:
        return "0.1"
    return f"{size / 2**30:.1f}".removesuffix(".0") if size < 100 * 2**30 else f"{size / 2**30:.0f}"
