"""Room: curves → a chart, of plain characters or as SVG. Knows nothing of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

HEIGHT, LEAST_WIDTH, MOST_WIDTH = 16, 24, 100
COLORS = ("#1f6fb4", "#d9730d", "#3d8b37", "#b3262e", "#7a4fa3", "#6b5344", "#c2479a", "#5f6368")
MARKS = "*+ox#@%&"


@dataclass(frozen=True)
class Curve:
    """A line of a chart: its name, and its points from left to right."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class _Frame:
    """The smallest box around all points."""

    left: float
    right: float
    low: float
    high: float

    @classmethod
    def around(cls, curves: Sequence[Curve]) -> _Frame:
        xs, ys = zip(*(point for curve in curves for point in curve.points))
        return cls(min(xs), max(xs), min(ys), max(ys))

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is: shares of the width from the left, of the height from above."""
        across = (x - self.left) / (self.right - self.left or 1)
        return across, (self.high - y) / (self.high - self.low or 1)


def text_chart(curves: Sequence[Curve], width: int, x_name: str, y_name: str) -> list[str]:
    """A chart of plain characters.

    Args:
        curves: at most one point in all may not be enough to see anything, but it is shown.
        width: columns at most.
        x_name: what is counted to the right.
        y_name: what is counted upwards.
    """
    frame = _Frame.around(curves)
    labels = [f"{frame.high:.3f}", f"{(frame.high + frame.low) / 2:.3f}", f"{frame.low:.3f}"]
    margin = max(map(len, labels))
    columns = max(LEAST_WIDTH, min(width, MOST_WIDTH) - margin - 3)
    field = [[" "] * columns for _ in range(HEIGHT)]
    for number, curve in enumerate(curves):
        for x, y in _dense(curve, columns, frame):
            across, down = frame.place(x, y)
            row = field[round(down * (HEIGHT - 1))]
            row[round(across * (columns - 1))] = MARKS[number % len(MARKS)]
    at = {0: labels[0], HEIGHT // 2: labels[1], HEIGHT - 1: labels[2]}
    lines = [f"{at.get(i, ''):>{margin}} |{''.join(row)}".rstrip() for i, row in enumerate(field)]
    left, right = f"{frame.left:,.0f}", f"{frame.right:,.0f} {x_name}"
    axis = left + " " * max(1, columns - len(left) - len(right)) + right
    legend = [f"  {MARKS[i % len(MARKS)]} {curve.name}" for i, curve in enumerate(curves)]
    return [
        y_name,
        *lines,
        " " * margin + " +" + "-" * columns,
        " " * (margin + 2) + axis,
        *legend,
    ]


def _dense(curve: Curve, columns: int, frame: _Frame) -> list[tuple[float, float]]:
    """The points, and those of the straight lines between them, one a column."""
    dense = list(curve.points[:1])
    for (x0, y0), (x1, y1) in zip(curve.points, curve.points[1:]):
        n = max(1, round((x1 - x0) / (frame.right - frame.left or 1) * (columns - 1)))
        dense += [(x0 + (x1 - x0) * i / n, y0 + (y1 - y0) * i / n) for i in range(1, n + 1)]
    return dense


def svg_chart(curves: Sequence[Curve], x_name: str, y_name: str) -> str:
    """The chart as an SVG image of 720 by 400."""
    frame = _Frame.around(curves)
    left, top, width, height = 60, 30, 640, 320
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 400" width="720" height="400" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="720" height="400" fill="white"/>',
        f'<text x="{left}" y="18">{escape(y_name)}</text>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = top + share * height
        value = frame.high - share * (frame.high - frame.low)
        parts += [
            f'<path d="M{left} {y:g}h{width}" stroke="#ddd"/>',
            f'<text x="{left - 6}" y="{y + 4:g}" text-anchor="end">{value:.3f}</text>',
        ]
    parts += [
        f'<text x="{left}" y="{top + height + 18}">{frame.left:,.0f}</text>',
        f'<text x="{left + width}" y="{top + height + 18}" text-anchor="end">'
        f"{frame.right:,.0f} {escape(x_name)}</text>",
    ]
    for i, curve in enumerate(curves):
        color = COLORS[i % len(COLORS)]
        places = (frame.place(x, y) for x, y in curve.points)
        line = " ".join(f"{left + a * width:.1f},{top + d * height:.1f}" for a, d in places)
        x, y = left + width - 6, top + 16 + 16 * i
        parts += [
            f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>',
            f'<text x="{x}" y="{y}" text-anchor="end" fill="{color}">{escape(curve.name)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
