"""Looking through many pictures without making the page wait: short looks are waited for, long ones go on in the
background."""

import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from kohya_gui import dataset_view
from kohya_gui.dataset_sources import Allowed
from kohya_gui.dataset_view import DatasetView

PATIENCE = 0.06  # seconds an answer is waited for
FRESH = 5.0  # seconds an answer holds though nothing in the folders seems to have changed
_KEPT = 8
# what decides which pictures there are and how they are shown
_KEYS = (
    "train_data_dir", "reg_data_dir", "in_json", "dataset_config", "dataset_class", "dataset_repeats", "prepares",
    "conditioning_data_dir", "masked_loss", "resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso",
    "bucket_reso_steps", "bucket_no_upscale", "train_batch_size", "validation_split", "validation_seed", "seed",
    "shuffle_caption", "caption_separator", "caption_extension", "caption_extention", "keep_tokens",
    "keep_tokens_separator", "secondary_separator", "enable_wildcard", "caption_prefix", "caption_suffix",
    "caption_dropout_rate", "caption_dropout_every_n_epochs", "caption_tag_dropout_rate", "token_warmup_min",
    "token_warmup_step",
)  # fmt: skip


class _Look:
    """One look at the pictures of some values, in a thread of its own."""

    def __init__(
        self, values: Mapping[str, Any], command: str, allowed: Allowed | None, before: DatasetView | None
    ) -> None:
        self.ended = threading.Event()
        self.at = 0.0
        self.found = before
        self._thread = threading.Thread(target=self._work, args=(values, command, allowed), daemon=True)
        self._thread.start()

    def _work(self, values: Mapping[str, Any], command: str, allowed: Allowed | None) -> None:
        try:
            self.found = dataset_view.view(values, command, allowed)
        finally:
            self.at = time.monotonic()
            self.ended.set()

    def answer(self, patience: float) -> DatasetView | None:
        """What was found; after so many seconds what was found the time before, if anything."""
        self.ended.wait(patience)
        return self.found


class Counter:
    """Answers of `dataset_view.view`, remembered for a moment and shared by all who ask the same."""

    def __init__(self, patience: float = PATIENCE, fresh: float = FRESH) -> None:
        self._patience, self._fresh = patience, fresh
        self._lock = threading.Lock()
        self._looks: OrderedDict[str, _Look] = OrderedDict()

    def look(self, values: Mapping[str, Any], command: str, allowed: Allowed | None = None) -> DatasetView | None:
        """The data set of these values; None while it is still being counted. Arguments as for `view`."""
        key = json.dumps([command, *(values.get(name) for name in _KEYS), *stamps(values)], default=str)
        with self._lock:
            look = self._looks.get(key)
            if look is None or (look.ended.is_set() and time.monotonic() - look.at > self._fresh):
                look = self._looks[key] = _Look(dict(values), command, allowed, look.found if look else None)
            self._looks.move_to_end(key)
            while len(self._looks) > _KEPT:
                self._looks.popitem(last=False)
        return look.answer(self._patience)


def stamps(values: Mapping[str, Any]) -> list[int]:
    """When the folders and files that say which pictures there are were changed last."""
    found = []
    for name in ("train_data_dir", "reg_data_dir", "in_json", "dataset_config", "conditioning_data_dir"):
        path = str(values.get(name) or "")
        try:
            found.append(os.stat(path).st_mtime_ns if path and "\0" not in path else 0)
            if path and os.path.isdir(path):
                with os.scandir(path) as entries:
                    places = [entry.path for _, entry in zip(range(100), entries) if entry.is_dir()]
                found.append(max((os.stat(place).st_mtime_ns for place in places), default=0))
        except OSError:
            found.append(0)
    return found
