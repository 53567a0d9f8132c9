"""Curves as inline SVG: drawn by Python, coloured by the page's style sheet, so they follow light and dark by
themselves."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Point = tuple[int, float]
WIDTH, HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 10, 28
_BAR = 17


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that span low..high, about `count` of them."""
    if not math.isfinite(low) or not math.isfinite(high) or high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 4, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    ticks = [first * step]
    while ticks[-1] < high - step * 1e-9:
        ticks.append((first + len(ticks)) * step)
    return ticks


def tick_text(value: float) -> str:
    """A number at an axis: 1,200 or 0.08 or 1e-4."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


class _Scale:
    """Data -> pixels of one chart."""

    def __init__(self, steps: tuple[float, float], ticks: Sequence[float]) -> None:
        self.first, self.last = steps
        self.low, self.high = ticks[0], ticks[-1]

    def x(self, step: float) -> float:
        span = (self.last - self.first) or 1
        return _LEFT + (step - self.first) / span * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1)
        return HEIGHT - _BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - _TOP - _BOTTOM)


def _path(points: Sequence[Point], scale: _Scale, name: str) -> str:
    if not points:
        return ""
    if len(points) == 1:
        return (
            f'<circle class="{name} k-dot" r="2.5" cx="{scale.x(points[0][0]):.1f}" cy="{scale.y(points[0][1]):.1f}"/>'
        )
    line = " ".join(f"{scale.x(step):.1f},{scale.y(value):.1f}" for step, value in points)
    return f'<polyline class="{name}" points="{line}"/>'


def chart(
    lines: Mapping[str, Sequence[Point]],
    *,
    dots: Sequence[Point] = (),
    total: int = 0,
    title: str = "",
    zero: bool = False,
) -> str:
    """A line chart over steps.

    Args:
        lines: CSS class -> points; drawn in this order.
        dots: points drawn as dots (validation).
        total: the run's last step; the horizontal axis reaches at least there.
        title: what it shows, for those who cannot see it.
        zero: let the vertical axis begin at 0.
    """
    everything = [point for points in lines.values() for point in points] + list(dots)
    if not everything:
        return ""
    values = sorted(value for _, value in everything)
    # one wild value at the start must not press the rest flat: the axis covers all but the highest hundredth
    high = values[max(math.ceil(len(values) * 0.99) - 1, 0)]
    low = 0.0 if zero else values[0]
    ticks = nice_ticks(low, high)
    first = min(step for step, _ in everything)
    last = max(total, max(step for step, _ in everything))
    scale = _Scale((min(first, 1) if first <= 1 else first, last), ticks)
    parts = [f'<svg class="k-chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">']
    for tick in ticks:
        y = scale.y(tick)
        parts.append(f'<line class="k-gridline" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">{tick_text(tick)}</text>')
    for tick in nice_ticks(scale.first, scale.last, 5):
        whole = round(tick)
        if scale.first <= whole <= scale.last:
            parts.append(f'<text x="{scale.x(whole):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{whole:,}</text>')
    parts += [_path(points, scale, name) for name, points in lines.items()]
    parts += [
        f'<circle class="k-valid k-dot" r="4" cx="{scale.x(step):.1f}" cy="{scale.y(value):.1f}"/>'
        for step, value in dots
    ]
    return "".join([*parts, "</svg>"])


def bars(values: Sequence[tuple[str, float]], title: str) -> str:
    """A bar for each value, with its name before and its number behind it.

    Args:
        values: (name, value from 0), drawn from top to bottom.
        title: what it shows, for those who cannot see it.
    """
    names = 150
    most = max((value for _, value in values), default=0.0) or 1.0
    height = _BAR * len(values) + 4
    parts = [f'<svg class="k-chart k-bars" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">']
    for number, (name, value) in enumerate(values):
        y = _BAR * number
        length = max(value / most, 0.0) * (WIDTH - names - 70)
        parts.append(f'<text x="{names - 8}" y="{y + 13}" text-anchor="end">{escape(name[:26])}</text>')
        parts.append(
            f'<rect class="k-bar-fill" x="{names}" y="{y + 3}" width="{length:.1f}" height="{_BAR - 5}" rx="2"/>'
        )
        parts.append(f'<text x="{names + length + 6:.1f}" y="{y + 13}">{tick_text(value)}</text>')
    return "".join([*parts, "</svg>"])
