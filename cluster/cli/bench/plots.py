"""The plots of a report as SVG, drawn here so that a page needs no library and no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.cli.bench.results import RequestResult

_WIDTH, _HEIGHT, _MARGIN = 420, 220, 36
_LINE, _SLO, _GOOD, _BAD, _GREY = "#2563a8", "#c2410c", "#2563a8", "#c2410c", "#999"


def cumulative_plot(caption: str, values: Sequence[float], slo: float) -> tuple[str, str]:
    """(caption, SVG): which part of the requests was at most so slow; the bound of the SLO as a dashed line."""
    if not values:
        return caption, _frame(0.0, "")
    ordered = sorted(values)
    end = max(ordered[-1], slo) * 1.05
    points = [(0.0, 0.0)]
    for index, value in enumerate(ordered):
        points += [(value, index / len(ordered)), (value, (index + 1) / len(ordered))]
    points.append((end, 1.0))
    path = " ".join(f"{_x(x / end):.1f},{_y(y):.1f}" for x, y in points)
    bound = _x(slo / end)
    body = (
        f'<polyline points="{path}" fill="none" stroke="{_LINE}" stroke-width="1.5"/>'
        f'<line x1="{bound:.1f}" x2="{bound:.1f}" y1="{_y(0):.1f}" y2="{_y(1):.1f}" stroke="{_SLO}"'
        ' stroke-dasharray="4 3"/>'
    )
    return caption, _frame(end, body)


def timeline_plot(requests: Sequence[RequestResult]) -> tuple[str, str]:
    """(caption, SVG): one line per request, from sending to its last token, with its first token as a dot."""
    caption = "Requests over time, s; the dot is the first token"
    end = max((request.sent_s + request.duration_s for request in requests), default=0.0) * 1.02
    if not end:
        return caption, _frame(0.0, "")
    marks = []
    for index, request in enumerate(requests):
        y = _y(1 - (index + 0.5) / len(requests))
        colour = _GOOD if request.error is None else _BAD
        begin, finish = _x(request.sent_s / end), _x((request.sent_s + request.duration_s) / end)
        marks.append(f'<line x1="{begin:.1f}" x2="{finish:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}"/>')
        if request.error is None:
            first = _x((request.sent_s + request.ttft_s) / end)
            marks.append(f'<circle cx="{first:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>')
    return caption, _frame(end, "".join(marks))


def _frame(end: float, body: str) -> str:
    """Axes from 0 to `end` around the body."""
    labels = "".join(
        f'<text x="{_x(part):.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{end * part:.3g}</text>'
        for part in ((0.0, 0.25, 0.5, 0.75, 1.0) if end else ())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-size="11" role="img">'
        f'<path d="M{_x(0)},{_y(1)} V{_y(0)} H{_x(1)}" fill="none" stroke="{_GREY}"/>{labels}{body}</svg>'
    )


def _x(part: float) -> float:
    return _MARGIN + part * (_WIDTH - 2 * _MARGIN)


def _y(part: float) -> float:
    return _HEIGHT - _MARGIN - part * (_HEIGHT - 2 * _MARGIN)
