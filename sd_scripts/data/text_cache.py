"""Outputs of the text encoders kept so that every caption is encoded once: in memory, or in .npz files.

Files lie beside the pictures under the name and with the keys that sd-scripts uses, so either program reads the
other's. One more key, "source", remembers the caption, the text encoders and the number of tokens. A file without it
says none of that: it is taken where it is newer than the caption and its values are those that the text encoders give
now for one of these captions.
"""

import json
import os
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sd_scripts.data.foreign import as_batch
from sd_scripts.data.npz import DAMAGED, Arrays, BackgroundWriter, Shapes, read_arrays, read_shapes, write_arrays
from sd_scripts.data.spec import SubsetSpec
from sd_scripts.schema.captions import Replacements, compose
from sd_scripts.schema.errors import DataError, UserError

if TYPE_CHECKING:
    from sd_scripts.data.dataset import DatasetGroup

Outputs = dict[str, Tensor]
"""Of one caption: hidden_state1 [T, 768], hidden_state2 [T, 1280], pool2 [1280], float32 in main memory."""

Encode = Callable[[list[str]], list[Outputs]]
SUFFIX = "_te_outputs.npz"
KEY = "cache_text_encoder_outputs"
_SOURCE = "source"
_TOLERANCE = 0.05  # relative; half-precision encoders differ by about 0.01 from full precision


@dataclass
class TextCache:
    """Where the outputs of every caption are. memory: by caption; None where they are in files.

    named: files that cannot have the usual name, because another caption of the same picture has it.
    """

    memory: dict[str, Outputs] | None = None
    named: dict[tuple[str, str], str] = field(default_factory=dict)

    def path(self, picture: str, caption: str) -> str:
        """File of a picture's caption."""
        stem = os.path.splitext(picture)[0]
        return self.named.get((stem, caption), stem + SUFFIX)

    def outputs(self, picture: str, caption: str) -> Outputs:
        """Outputs for training. Raises DataError naming a file that is damaged or gone now."""
        if self.memory is not None:
            return self.memory[caption]
        path = self.path(picture, caption)
        try:
            arrays = read_arrays(path)
        except DAMAGED as error:
            raise DataError(
                f"the cache file {path} is damaged or gone: {error}", KEY, "Delete it and start again."
            ) from error
        return {name: torch.from_numpy(values.astype(np.float32)) for name, values in _wanted(arrays)}


def _wanted(arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    return ((name, values) for name, values in arrays.items() if name != _SOURCE)


def check_text_cacheable(subsets: Iterable[SubsetSpec], replacements: Replacements = ()) -> None:
    """Raises UserError naming the option by which a caption is not the same at every use."""
    for subset in subsets:
        for name in subset.captions.changing:
            raise UserError(
                f"{KEY} and {name} exclude each other: a cached caption is the same at every use.",
                key=name,
                hint=f"Switch one of them off ({subset.place or subset.name}).",
            )
    if any(not isinstance(new, str) for _, new in replacements):
        raise UserError(f"{KEY} does not go with captions that are drawn from templates.", key=KEY)


@dataclass
class _Task:
    """One file, or in memory one caption, to fill. since: time of the caption's file in ns, None where it has none.

    plain: whether the caption is used as it is written, as sd-scripts encodes it; shapes: of the file's arrays, once
    it is known to be right.
    """

    caption: str
    path: str
    since: int | None
    plain: bool
    shapes: Shapes | None = None


def cache_text(
    group: "DatasetGroup",
    encode: Encode,
    *,
    to_disk: bool,
    batch_size: int,
    process_index: int,
    num_processes: int,
    progress: Callable[[int, int], None] | None,
    wait: Callable[[], None] | None,
    on_machine: tuple[int, int] | None,
    encoder_id: str,
    max_token_length: int | None,
) -> tuple[TextCache, int]:
    """See DatasetGroup.cache_text_outputs. Returns the cache and the number of captions encoded here."""
    if group.foreign is not None and as_batch(group.foreign[0], 0, group.blueprint.source).text_outputs is None:
        raise UserError(
            f"the batches of dataset_class {group.blueprint.source} bring no text encoder outputs.",
            key=KEY,
            hint=f"Give them as text_outputs, or leave {KEY} out.",
        )
    subsets = [subset.spec for dataset in group.datasets for subset in dataset.subsets]
    check_text_cacheable(subsets, group.replacements)
    cache = TextCache(memory=None if to_disk else {})
    tasks = _tasks(group, cache)
    source = {"encoder": encoder_id, "tokens": max_token_length or 75}
    fill = partial(_fill, cache, encode, source, batch_size, progress or (lambda done, total: None))
    own = tasks
    if to_disk:
        own = [task for number, task in enumerate(tasks) if number % num_processes == process_index]
    todo = own
    if to_disk:
        ready = _ready(own, source, encode, trust=group.blueprint.skip_cache_check)
        todo = [task for task, is_ready in zip(own, ready) if not is_ready]
    encoded = fill(todo, len(own) - len(todo), len(own))
    if to_disk and wait is not None:
        wait()
    if to_disk and on_machine is not None and on_machine[1] < num_processes:
        # Another machine may have written its share where this one cannot see it.
        index, count = on_machine
        share = [task for number, task in enumerate(tasks) if number % count == index]
        ready = _ready(share, source, encode, trust=group.blueprint.skip_cache_check)
        lacking = [task for task, is_ready in zip(share, ready) if not is_ready]
        encoded += fill(lacking, len(share) - len(lacking), len(share))
        if wait is not None:
            wait()
    if to_disk:
        _settle(tasks)
    return cache, encoded


def _fill(
    cache: TextCache,
    encode: Encode,
    source: dict[str, object],
    batch_size: int,
    report: Callable[[int, int], None],
    todo: Sequence[_Task],
    done: int,
    total: int,
) -> int:
    """Encode the captions of `todo`, each once; returns their number. `done` of `total` files are there already."""
    by_caption: dict[str, list[_Task]] = {}
    for task in todo:
        by_caption.setdefault(task.caption, []).append(task)
    report(done, total)
    captions = list(by_caption)
    with BackgroundWriter(2 * max(1, batch_size)) as writer:
        for start in range(0, len(captions), max(1, batch_size)):
            part = captions[start : start + max(1, batch_size)]
            for caption, outputs in zip(part, _encode(part, encode)):
                if cache.memory is not None:
                    cache.memory[caption] = outputs
                else:
                    for task in by_caption[caption]:
                        writer.submit(_writing(task, outputs, source))
                done += len(by_caption[caption])
            report(done, total)
    return len(captions)


def _tasks(group: "DatasetGroup", cache: TextCache) -> list[_Task]:
    """What is to be filled, every file once; in memory every caption once."""
    tasks: dict[str, _Task] = {}
    captions: dict[str, str] = {}
    for dataset in group.datasets:
        for record in dataset.records:
            subset = dataset.subset_of(record)
            caption = compose(record.caption, subset.captions, random.Random(0), replacements=group.replacements)
            if cache.memory is not None:
                tasks.setdefault(caption, _Task(caption, "", None, True))
                continue
            stem = os.path.splitext(record.path)[0]
            if captions.setdefault(stem, caption) != caption:
                # a second caption of the picture, from another data set: a name of its own
                cache.named[stem, caption] = f"{stem}_{zlib.crc32(caption.encode()):08x}{SUFFIX}"
            path = cache.path(record.path, caption)
            if path not in tasks:
                tasks[path] = _Task(caption, path, _caption_time(stem, subset), caption == record.caption)
    return list(tasks.values())


def _caption_time(stem: str, subset: SubsetSpec) -> int | None:
    file: Path | str | None = subset.metadata_file if subset.kind == "finetune" else stem + subset.caption_extension
    try:
        return os.stat(file).st_mtime_ns if file is not None else None
    except OSError:
        return None  # the class words are the caption


def _ready(tasks: Sequence[_Task], source: dict[str, object], encode: Encode, *, trust: bool) -> list[bool]:
    """Which files hold what is wanted already."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        if trust:
            return list(pool.map(lambda task: os.path.isfile(task.path), tasks))
        found = list(pool.map(lambda task: _look(task, source), tasks))
    foreign = [number for number, state in enumerate(found) if state is None]
    if not foreign:
        return [bool(state) for state in found]
    first = tasks[foreign[0]]
    good = _like_ours(first, encode)
    return [good and task.shapes == first.shapes if state is None else state for task, state in zip(tasks, found)]


def _look(task: _Task, source: dict[str, object]) -> bool | None:
    """Whether a file is right; None for a file of another program, which does not say what it was made from."""
    if not os.path.isfile(task.path):
        return False
    try:
        shapes, texts = _shapes(task.path)
        recorded = json.loads(str(texts[_SOURCE])) if _SOURCE in texts else None
    except DAMAGED:
        return False  # torn: it is encoded and written again
    if recorded is None:
        right = task.plain and (task.since is None or os.stat(task.path).st_mtime_ns >= task.since)
        task.shapes = shapes
        return None if right and shapes else False
    if not isinstance(recorded, dict) or recorded.get("caption") != task.caption:
        return False
    task.shapes = shapes
    known = recorded.get("encoder") and source["encoder"]
    return recorded.get("tokens") == source["tokens"] and (not known or recorded["encoder"] == source["encoder"])


def _shapes(path: str) -> tuple[Shapes, Arrays]:
    """Shapes of a file's outputs, and the texts in it. Raises one of DAMAGED."""
    shapes, texts = read_shapes(path)
    return {name: shape for name, shape in shapes.items() if name not in texts}, texts


def _like_ours(task: _Task, encode: Encode) -> bool:
    """Whether the text encoders give now what a file of another program holds."""
    (fresh,) = _encode([task.caption], encode)
    try:
        arrays = read_arrays(task.path)
    except DAMAGED:
        return False
    if {name: values.shape for name, values in arrays.items()} != {n: tuple(v.shape) for n, v in fresh.items()}:
        return False
    return all(_close(torch.from_numpy(arrays[name].astype(np.float32)), fresh[name]) for name in fresh)


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= _TOLERANCE * other.norm())


def _encode(captions: list[str], encode: Encode) -> list[Outputs]:
    with torch.no_grad():
        results = encode(captions)
    if len(results) != len(captions):
        raise ValueError(f"{len(captions)} captions were encoded to {len(results)} outputs")
    kept = []
    for caption, outputs in zip(captions, results):
        if not all(torch.isfinite(values).all() for values in outputs.values()):
            raise UserError(
                f"the text encoders gave NaN or infinite values for the caption {caption!r}.",
                key="mixed_precision",
                hint="Use bf16 or no mixed precision for a model whose text encoders do not work in fp16.",
            )
        # copies of their own: views would keep the whole batch in memory
        kept.append({n: v.detach().to("cpu", torch.float32, copy=True).contiguous() for n, v in outputs.items()})
    return kept


def _writing(task: _Task, outputs: Outputs, source: dict[str, object]) -> Callable[[], None]:
    def write() -> None:
        arrays = {name: values.numpy() for name, values in outputs.items()}
        task.shapes = {name: values.shape for name, values in arrays.items()}
        arrays[_SOURCE] = np.array(json.dumps({"caption": task.caption} | source, sort_keys=True))
        try:
            write_arrays(task.path, arrays)
        except OSError as error:
            raise UserError(
                f"cannot write the cache file {task.path}: {error.strerror or error}.",
                key=f"{KEY}_to_disk",
                hint=f"Free some space or make the folder writable, or cache in memory with {KEY}.",
            ) from error

    return write


def _settle(tasks: Sequence[_Task]) -> None:
    """Look that every file is there and alike, also those that other processes wrote."""
    usual: Shapes | None = None
    for task in tasks:
        try:
            shapes = task.shapes or _shapes(task.path)[0]
        except DAMAGED as error:
            raise DataError(
                f"the text encoder outputs of {task.caption!r} should be in {task.path} by now, but are not",
                key=f"{KEY}_to_disk",
                hint="Did another process stop, or was the file removed meanwhile?",
            ) from error
        usual = usual or shapes
        if shapes != usual:
            raise DataError(
                f"the cache file {task.path} holds arrays of other sizes than {tasks[0].path}",
                key=KEY,
                hint="Delete it and start again.",
            )
