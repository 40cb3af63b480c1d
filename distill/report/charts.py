"""Line charts as SVG text: one quantity, one line a run."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from distill.report.records import Curve

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 10, 30
#: More points than this are averaged in groups: a curve cannot show more.
MOST_POINTS = 700
#: Runs beyond the colours repeat them with dashes.
NUM_COLOURS = 8


def thinned(curve: Curve) -> Curve:
    """At most :data:`MOST_POINTS` points: means over neighbours (a group without any finite value stays a gap)."""
    size = -(-len(curve) // MOST_POINTS)
    if size <= 1:
        return curve
    groups = [curve[start:start + size] for start in range(0, len(curve), size)]
    thin: Curve = []
    for group in groups:
        values = [y for _, y in group if y is not None]
        thin.append((group[-1][0], sum(values) / len(values) if values else None))
    return thin


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers in [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Short text of a number."""
    if value == 0:
        return "0"
    if abs(value) >= 10000:
        for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= limit:
                return f"{value / limit:.3g}{suffix}"
    return f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.2e}".replace("e-0", "e-")


def chart(title: str, curves: Sequence[tuple[int, str, Curve]], unit: str = "") -> str:
    """A chart of one quantity.

    Args:
        curves: (number of the run, its name, its points); runs without points are left out by the caller.
    """
    curves = [(run, name, thinned(curve)) for run, name, curve in curves]
    points = [(x, y) for _, _, curve in curves for x, y in curve if y is not None]
    label = html.escape(title) + (f' <span class="unit">{html.escape(unit)}</span>' if unit else "")
    if not points:
        return f"<figure><figcaption>{label}</figcaption><p class=empty>no finite value</p></figure>"
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = _padded(min(y for _, y in points), max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return (LEFT + across * (WIDTH - LEFT - RIGHT),
                TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM))

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    for y in ticks(y_low, y_high):
        at = place(x_low, y)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
                     f'<text class="tick" x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{number(y)}</text>')
    for x in ticks(x_low, x_high):
        at = place(x, y_low)[0]
        parts.append(f'<text class="tick" x="{at:.1f}" y="{HEIGHT - 12}" text-anchor="middle">{number(x)}</text>')
    for run, name, curve in curves:
        parts.append(_line(run, name, [(x, y, *place(x, y)) if y is not None else None for x, y in curve]))
    parts.append("</svg>")
    return f"<figure><figcaption>{label}</figcaption>{''.join(parts)}</figure>"


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return (0.0 if low >= 0 > low - margin else low - margin), high + margin


def _line(run: int, name: str, points: list[tuple[float, float, float, float] | None]) -> str:
    """One run's line, broken where a value is missing; a lone point is a dot. Each point is read by pointing at it."""
    pieces: list[list[tuple[float, float, float, float]]] = [[]]
    for point in points:
        if point is None:
            pieces.append([])
        else:
            pieces[-1].append(point)
    style = f"c{run % NUM_COLOURS}" + (" dashed" if run >= NUM_COLOURS else "")
    drawn = []
    for piece in filter(None, pieces):
        path = "M" + "L".join(f"{px:.1f},{py:.1f}" for _, _, px, py in piece)
        drawn.append(f'<path class="line {style}" d="{path}"/>')
    known = [point for point in points if point is not None]
    if len(known) <= 40:
        drawn += [f'<circle class="dot {style}" cx="{px:.1f}" cy="{py:.1f}" r="2.6"/>' for _, _, px, py in known]
    drawn += [f'<circle class="hit" cx="{px:.1f}" cy="{py:.1f}" r="7"><title>{html.escape(name)}\n'
              f"iteration {number(x)}: {y:.6g}</title></circle>" for x, y, px, py in _spread(known)]
    return "".join(drawn)


def _spread(points: list[tuple[float, float, float, float]], most: int = 90) -> list[tuple[float, float, float, float]]:
    """Enough of the points to point at."""
    step = max(1, len(points) // most)
    return points[::step] + ([points[-1]] if points and (len(points) - 1) % step else [])
