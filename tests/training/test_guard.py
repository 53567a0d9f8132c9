"""When overflowing gradients mean the end."""

import math

from sd_scripts.training.guard import PATIENCE, OverflowWatch


def test_without_a_scaler_the_first_one_is_the_end() -> None:
    watch = OverflowWatch(scaled=False)
    assert not watch.broken(1.0) and watch.broken(math.nan) and watch.broken(math.inf)


def test_with_a_scaler_only_many_in_a_row_are() -> None:
    watch = OverflowWatch(scaled=True)
    assert not any(watch.broken(math.inf) for _ in range(PATIENCE))
    assert not watch.broken(2.0)
    assert not any(watch.broken(math.nan) for _ in range(PATIENCE))
    assert watch.broken(math.inf)
