"""Scenario results for people and programs: a table, JSON, and an HTML page with plots that needs nothing else."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cluster.cli.bench.plots import cumulative_plot, timeline_plot

if TYPE_CHECKING:
    from cluster.cli.bench.results import ScenarioResult
    from configs.scenarios import Slo

_COLUMNS: tuple[tuple[str, str, float, str], ...] = (
    ("requests", "requests", 1, ".0f"),
    ("errors", "errors", 1, ".0f"),
    ("done/s", "requests_per_s", 1, ".2f"),
    ("goodput/s", "goodput_per_s", 1, ".2f"),
    ("TTFT p50 ms", "ttft_p50_s", 1e3, ".0f"),
    ("p90", "ttft_p90_s", 1e3, ".0f"),
    ("p99", "ttft_p99_s", 1e3, ".0f"),
    ("TPOT p50 ms", "tpot_p50_s", 1e3, ".1f"),
    ("p90", "tpot_p90_s", 1e3, ".1f"),
    ("p99", "tpot_p99_s", 1e3, ".1f"),
)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .25rem .7rem; text-align: right; }
th { border-bottom: 1px solid #999; } td:first-child, th:first-child { text-align: left; }
figure { display: inline-block; margin: 0 1rem 1rem 0; } figcaption { color: #555; }
"""


def table_lines(results: Sequence[ScenarioResult], slo: Slo) -> list[str]:
    """The results as a table of plain text, with what went wrong and where the stages' time went below it."""
    rows = [("scenario", *(title for title, *_ in _COLUMNS))]
    rows += [(result.name, *_cells(result, slo)) for result in results if result.left_out is None]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.append(f"goodput: TTFT at most {slo.ttft_s:g} s and TPOT at most {slo.tpot_s * 1e3:g} ms")
    for result in results:
        if result.left_out is not None:
            lines.append(f"{result.name}: left out: {result.left_out}")
        lines += [f"{result.name}: {number} x {reason}" for reason, number in result.errors().most_common()]
        if result.stages:
            lines.append(f"{result.name}: {_stages(result)}")
    return lines


def to_json(target: Mapping[str, str], results: Sequence[ScenarioResult], slo: Slo) -> str:
    """Everything, each request included. `target` says what was measured and where."""
    content = {
        "target": dict(target),
        "slo": {"ttft_s": slo.ttft_s, "tpot_s": slo.tpot_s},
        "scenarios": [result.to_json(slo) for result in results],
    }
    return json.dumps(content, indent=1) + "\n"


def to_html(target: Mapping[str, str], results: Sequence[ScenarioResult], slo: Slo) -> str:
    """One page without scripts or anything from elsewhere."""
    header = "".join(f"<th>{html.escape(title)}</th>" for title in ("scenario", *(title for title, *_ in _COLUMNS)))
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in (result.name, *_cells(result, slo))) + "</tr>"
        for result in results
        if result.left_out is None
    )
    sections = "".join(_section(result, slo) for result in results)
    about = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in target.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>triptych bench</title><style>{_STYLE}</style>'
        f"<h1>triptych bench</h1><dl>{about}</dl>"
        f"<p>Goodput counts answers with TTFT at most {slo.ttft_s:g} s and TPOT at most {slo.tpot_s * 1e3:g} ms.</p>"
        f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>{sections}</html>\n"
    )


def _section(result: ScenarioResult, slo: Slo) -> str:
    if result.left_out is not None:
        return f"<h2>{html.escape(result.name)}</h2><p>Left out: {html.escape(result.left_out)}</p>"
    plots = [
        cumulative_plot("Time to first token, s", result.ttfts_s(), slo.ttft_s),
        cumulative_plot("Time per output token, s", result.tpots_s(), slo.tpot_s),
        timeline_plot(result.requests),
    ]
    figures = "".join(
        f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>" for caption, svg in plots
    )
    errors = "".join(f"<li>{number} × {html.escape(reason)}</li>" for reason, number in result.errors().most_common())
    stages = f"<p>{html.escape(_stages(result))}</p>" if result.stages else ""
    return f"<h2>{html.escape(result.name)}</h2>{stages}{figures}<ul>{errors}</ul>"


def _cells(result: ScenarioResult, slo: Slo) -> tuple[str, ...]:
    figures = result.figures(slo)
    return tuple(
        "-" if math.isnan(figures[name]) else format(figures[name] * factor, form) for _, name, factor, form in _COLUMNS
    )


def _stages(result: ScenarioResult) -> str:
    return "mean per stage: " + "; ".join(
        f"{name} waited {times.queue_s * 1e3:.0f} ms, computed {times.compute_s * 1e3:.0f} ms"
        for name, times in result.stages.items()
    )
