"""Curves as SVG, and the words for sizes and times."""

import re

import pytest

from kohya_gui.pickers import size_text
from kohya_gui.tabs.charts import chart, nice_ticks, tick_text
from kohya_gui.tabs.jobs_html import duration, speed_text


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.043, 0.158, [0.04, 0.08, 0.12, 0.16]),
        (0, 1000, [0, 250, 500, 750, 1000]),
        (2, 2, [2, 2.5, 3, 3.5, 4]),
    ],
)
def test_ticks_are_round_and_cover_the_values(low: float, high: float, ticks: list[float]) -> None:
    made = nice_ticks(low, high)
    assert made[0] <= low and made[-1] >= high
    assert made == pytest.approx(ticks)


def test_tick_text() -> None:
    assert [tick_text(value) for value in (0, 0.05, 1e-4, 2.5e-5, 1200, 3)] == [
        "0",
        "0.05",
        "1e-4",
        "2.5e-5",
        "1,200",
        "3",
    ]


def test_a_falling_curve_falls_on_the_picture() -> None:
    drawn = chart({"k-line": [(step, 1 / step) for step in range(1, 50)]}, total=100)
    points = re.search(r'polyline class="k-line" points="([^"]+)"', drawn)
    assert points is not None
    places = [tuple(map(float, point.split(","))) for point in points[1].split()]
    assert len(places) == 49
    assert all(left[0] < right[0] for left, right in zip(places, places[1:]))
    # down in the picture is a larger y
    assert places[0][1] < places[-1][1]
    # half of the run is done, so the curve ends in the middle
    assert 250 < places[-1][0] < 350


def test_one_wild_value_does_not_flatten_the_rest() -> None:
    values = [(1, 500.0), *((step, 0.1 + 0.001 * (step % 10)) for step in range(2, 300))]
    drawn = chart({"k-line": values}, total=300)
    assert ">500" not in drawn and "0.11" in drawn


def test_nothing_to_draw() -> None:
    assert chart({"k-line": []}) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.2, "0 s"), (59.4, "59 s"), (60, "1 min"), (754, "13 min"), (3600, "1 h"), (4810, "1 h 20 min")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_speeds_and_sizes() -> None:
    assert [speed_text(speed) for speed in (None, 0, 1.94, 0.25)] == ["", "", "1.9 it/s", "4.0 s/it"]
    assert [size_text(size) for size in (None, 12, 91_200, 9_100_000, 2_300_000_000)] == [
        "",
        "12 B",
        "91 kB",
        "9.1 MB",
        "2.3 GB",
    ]
