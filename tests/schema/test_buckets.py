"""Bucket lists, bucket choice, resize and crop against recorded numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from sd_scripts.schema.buckets import Bucketer, Bucketing, bucket_sizes
from sd_scripts.schema.errors import DataError

NUMBERS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "buckets.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", NUMBERS["resolutions"], ids=lambda c: str(c["in"]["resolution"]))
def test_bucket_list_of_a_dataset(case: dict[str, Any]) -> None:
    given = case["in"]
    bucketer = Bucketer(Bucketing(tuple(given["resolution"]), True, given["min"], given["max"], given["steps"]))
    assert [list(size) for size in bucketer.sizes] == case["out"]["resos"]


@pytest.mark.parametrize("name", list(NUMBERS["lists"]))
def test_more_bucket_lists(name: str) -> None:
    resolution, low, high, step = name.split("|")
    width, height = (int(n) for n in resolution.split("x"))
    sizes = bucket_sizes((width, height), int(low[3:]), int(high[3:]), int(step[4:]))
    assert [list(size) for size in sizes] == NUMBERS["lists"][name]


@pytest.mark.parametrize("case", NUMBERS["make_bucket_resolutions"], ids=lambda c: str(c["in"]))
def test_bucket_list_function(case: dict[str, Any]) -> None:
    given, wanted = case["in"], case["out"]
    sizes = bucket_sizes(tuple(given["max_reso"]), given["min"], given["max"], given["divisible"])
    assert len(sizes) == wanted["count"]
    assert [list(s) for s in sizes[:8]] == wanted["first8"]
    assert [list(s) for s in sizes[-8:]] == wanted["last8"]
    assert sum(w for w, _ in sizes) == wanted["sum_w"]
    assert sum(w * h for w, h in sizes) == wanted["sum_wh"]


@pytest.mark.parametrize("case", NUMBERS["select"], ids=lambda c: str(c["in"]))
def test_where_a_picture_goes(case: dict[str, Any]) -> None:
    given = case["in"]
    rule = Bucketing(tuple(given["resolution"]), True, given["min"], given["max"], given["steps"], given["no_upscale"])
    bucketer = Bucketer(rule)
    for row in case["out"]:
        placed = bucketer.select(*row["image"])
        assert [list(placed.bucket), list(placed.resized)] == [row["bucket"], row["resized"]], row["image"]
        assert placed.ar_error == pytest.approx(row["ar_error"], rel=1e-6, abs=1e-9)
        assert placed.crop_ltrb == pytest.approx(tuple(row["crop_ltrb"]), rel=1e-6)
        assert list(placed.pixel_crop) == row["pixel_crop_left_top"]


def test_documented_examples() -> None:
    for row in NUMBERS["examples_512_256_1024_64"]:
        placed = Bucketer(Bucketing((512, 512), True, no_upscale=row["no_upscale"])).select(*row["image"])
        assert [list(placed.bucket), list(placed.resized)] == [row["bucket"], row["resized"]]
        assert placed.ar_error == pytest.approx(row["ar_error"], abs=1e-6)
        assert placed.crop_ltrb == pytest.approx(tuple(row["crop_ltrb"]))


def test_without_buckets_everything_goes_to_the_resolution() -> None:
    placed = Bucketer(Bucketing((512, 384))).select(1000, 1000)
    assert placed.bucket == (512, 384)
    assert placed.resized == (512, 512)
    assert placed.pixel_crop == (0, 64)


def test_range_is_rounded_to_the_step() -> None:
    assert Bucketing((512, 512), True, 300, 1000, 64).rounded_range() == (256, 1024)
    assert Bucketing((512, 512), True, 32, 1000, 64).rounded_range() == (64, 1024)


def test_a_picture_below_one_step_is_refused() -> None:
    with pytest.raises(DataError, match="40x900"):
        Bucketer(Bucketing((512, 512), True, no_upscale=True)).select(40, 900)
