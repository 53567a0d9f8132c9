"""Order of batches against recorded numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard

from sd_scripts.data.bucket import BatchOrder, share_of_process, shuffled_batches
from sd_scripts.schema.buckets import Bucketer, Bucketing

NUMBERS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "batches.json").read_text(encoding="utf-8"))
LATEST = [c for c in NUMBERS["batch_order"] if c["version"] == "latest"]
OLDER = [c for c in NUMBERS["batch_order"] if c["version"] != "latest"]


def order_of(given: dict[str, Any]) -> tuple[BatchOrder, list[tuple[int, int]]]:
    bucketer = Bucketer(
        Bucketing(tuple(given["resolution"]), given["enable_bucket"], given["min"], given["max"], given["steps"])
    )
    members: dict[tuple[int, int], list[int]] = {}
    for number, image in enumerate(given["images"]):
        members.setdefault(bucketer.select(*image["size"]).bucket, []).extend([number] * image["repeats"])
    sizes = sorted(members)
    return BatchOrder([members[size] for size in sizes], given["batch_size"], given["dataset_seed"]), sizes


def rows(given: dict[str, Any], order: BatchOrder, sizes: list[tuple[int, int]], epoch: int) -> list[Any]:
    keys = [image["key"] for image in given["images"]]
    return [
        [list(sizes[order.bucket_of(epoch, i)]), [keys[number] for number in order.pictures(epoch, i)]]
        for i in range(len(order))
    ]


@pytest.mark.parametrize("case", LATEST, ids=lambda c: f"seed {c['in']['dataset_seed']} size {c['in']['batch_size']}")
def test_batches_of_every_epoch(case: dict[str, Any]) -> None:
    order, sizes = order_of(case["in"])
    assert len(order) == case["out"]["len"]
    assert rows(case["in"], order, sizes, 0) == case["out"]["after_make_buckets_epoch0"]
    first = rows(case["in"], order, sizes, 1)
    assert first == case["out"]["epoch1"]
    assert rows(case["in"], order, sizes, 4) == case["out"]["jump_to_epoch4"]
    assert rows(case["in"], order, sizes, 1) == first


@pytest.mark.parametrize("case", OLDER, ids=lambda c: f"seed {c['in']['dataset_seed']} size {c['in']['batch_size']}")
def test_sorting_into_buckets(case: dict[str, Any]) -> None:
    order, sizes = order_of(case["in"])
    assert len(order) == case["out"]["len"]
    assert rows(case["in"], order, sizes, 0) == case["out"]["after_make_buckets_epoch0"]


def test_a_resumed_run_finds_the_same_order() -> None:
    order, sizes = order_of(LATEST[0]["in"])
    walked = [rows(LATEST[0]["in"], order, sizes, epoch) for epoch in range(6)]
    fresh, _ = order_of(LATEST[0]["in"])
    assert rows(LATEST[0]["in"], fresh, sizes, 5) == walked[5]
    assert len({json.dumps(w) for w in walked}) == 6


@pytest.mark.parametrize("case", NUMBERS["dataloader_order"], ids=lambda c: c["in"]["recipe"])
def test_order_over_all_datasets(case: dict[str, Any]) -> None:
    seed = int(case["in"]["recipe"].split("manual_seed(")[1].split(")")[0])
    count = int(case["in"]["recipe"].split("range(")[1].split(")")[0])
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    assert shuffled_batches(count, seed, 1) == case["out"]["epoch1"]
    assert shuffled_batches(count, seed, 2) == case["out"]["epoch2"]
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_processes_share_as_accelerate_does(count: int, processes: int) -> None:
    order = shuffled_batches(count, 7, 1)
    sampler = torch.utils.data.BatchSampler(order, batch_size=1, drop_last=False)
    for index in range(processes):
        theirs = [n for batch in BatchSamplerShard(sampler, processes, index, even_batches=True) for n in batch]
        assert share_of_process(order, index, processes) == theirs
