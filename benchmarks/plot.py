"""Draws curves over a logarithmic grid as SVG text, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
_COLOURS = ("#888888", "#000000", "#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd")
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 460, 340, 60, 30, 110, 45


def log_chart(title: str, x_label: str, y_label: str, curves: Mapping[str, Points], left: int = 0) -> str:
    """One chart as an SVG group, both axes logarithmic; `left` shifts it to the right."""
    points = [point for curve in curves.values() for point in curve]
    x_low, x_high = _bounds([x for x, _ in points], 2)
    y_low, y_high = _bounds([y for _, y in points], 10)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log(x) - math.log(x_low)) / (math.log(x_high) - math.log(x_low))
        up = (math.log(y) - math.log(y_low)) / (math.log(y_high) - math.log(y_low))
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<g transform="translate({left},0)">', _text(_LEFT, 18, title)]
    for x in sorted({x for x, _ in points}):
        column, _ = place(x, y_low)
        parts.append(_line(column, _TOP, column, _HEIGHT - _BOTTOM))
        parts.append(_text(column, _HEIGHT - _BOTTOM + 15, _bytes(x), "middle"))
    for exponent in range(round(math.log10(y_low)), round(math.log10(y_high)) + 1):
        _, row = place(x_low, 10.0**exponent)
        parts.append(_line(_LEFT, row, _WIDTH - _RIGHT, row))
        parts.append(_text(_LEFT - 6, row + 4, f"{10.0**exponent:g}", "end"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, x_label, "middle"))
    parts.append(
        f'<text transform="translate(14,{_HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    for number, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
        parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>')
        row = _TOP + 16 * number + 8
        parts.append(f'<rect x="{_WIDTH - _RIGHT + 10}" y="{row - 8}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(_WIDTH - _RIGHT + 25, row + 1, name))
    return "\n".join([*parts, "</g>"])


def svg(charts: Sequence[str]) -> str:
    """A picture of charts that were shifted by `chart_width` each."""
    size = f'width="{chart_width() * len(charts)}" height="{_HEIGHT}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">',
            '<rect width="100%" height="100%" fill="white"/>',
            *charts,
            "</svg>\n",
        ]
    )


def chart_width() -> int:
    """Width of one chart."""
    return _WIDTH


def _bounds(values: Sequence[float], base: float) -> tuple[float, float]:
    low = base ** math.floor(math.log(min(values), base))
    high = base ** math.ceil(math.log(max(values), base))
    return low, high if high > low else low * base


def _bytes(number: float) -> str:
    return f"{number / 2**20:g} MiB" if number >= 2**20 else f"{number / 2**10:g} KiB"


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
