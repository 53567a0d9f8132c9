"""The order in which waiting jobs start, kept on disk, and which jobs may run beside each other."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from kohya_gui.supervisor import read_json, write_json

FILE = "queue.json"
ALL, NONE = "all", "none"
MOST_WITHOUT_GPU = 2


class QueueFile:
    """The waiting jobs' ids in their order, and whether the queue is held. Callers hold the store's lock."""

    def __init__(self, root: Path) -> None:
        self.path = root / FILE

    def _read(self) -> tuple[list[str], bool]:
        stored = read_json(self.path) or {}
        order = stored.get("order")
        known = [name for name in order if isinstance(name, str)] if isinstance(order, list) else []
        return list(dict.fromkeys(known)), stored.get("held") is True

    def _write(self, order: list[str], held: bool) -> None:
        write_json(self.path, {"order": order, "held": held})

    @property
    def held(self) -> bool:
        """Whether waiting jobs stay waiting."""
        return self._read()[1]

    def hold(self, held: bool) -> None:
        """Keep waiting jobs from starting, or let them start again."""
        self._write(self._read()[0], held)

    def order(self, waiting: Iterable[str]) -> list[str]:
        """The ids of waiting jobs in order; ones that the file does not know come last, in the order given."""
        present = list(waiting)
        first = [name for name in self._read()[0] if name in set(present)]
        return first + [name for name in present if name not in set(first)]

    def move(self, waiting: Iterable[str], name: str, steps: int) -> None:
        """Move a job towards the front (-1) or the back (+1)."""
        order = self.order(waiting)
        index = order.index(name)
        order.insert(min(max(index + steps, 0), len(order) - 1), order.pop(index))
        self._write(order, self.held)

    def append(self, waiting: Iterable[str], name: str) -> None:
        """Put a job at the end."""
        order = [known for known in self.order(waiting) if known != name]
        self._write([*order, name], self.held)

    def drop(self, waiting: Iterable[str], name: str) -> None:
        """Forget a job that starts or is removed."""
        self._write([known for known in self.order(waiting) if known != name], self.held)


def gpu_set(gpu_ids: object) -> str:
    """The name of a set of GPUs as jobs compare it: "all", or sorted numbers such as "0,2"."""
    parts = {part.strip() for part in str(gpu_ids or "").replace(";", ",").split(",") if part.strip()}
    if not parts or ALL in {part.lower() for part in parts}:
        return ALL
    return ",".join(sorted(parts, key=lambda part: (not part.isdecimal(), int(part) if part.isdecimal() else 0, part)))


def clash(first: str, second: str) -> bool:
    """Whether two sets share a GPU; "all" shares with everything but "none", which shares with nothing."""
    if NONE in (first, second):
        return False
    if ALL in (first, second):
        return True
    return not set(first.split(",")).isdisjoint(second.split(","))


def has_room(wanted: str, busy: Sequence[str]) -> bool:
    """Whether a job with these GPUs may start beside those; of jobs that need none a few run at once."""
    if wanted == NONE:
        return busy.count(NONE) < MOST_WITHOUT_GPU
    return not any(clash(wanted, other) for other in busy)
