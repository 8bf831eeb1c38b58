"""Write configs/grafana/triptych.json: the dashboard, of a table of panels.

Usage: python tools/make_dashboard.py
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_OUT = Path(__file__).resolve().parents[1] / "configs" / "grafana" / "triptych.json"
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_WIDTH, _HEIGHT, _COLUMNS = 8, 7, 3


@dataclass(frozen=True)
class Panel:
    """One graph: its title, Grafana's unit, and queries by their legends."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]


def quantiles(metric: str, by: str, *parts: float) -> tuple[tuple[str, str], ...]:
    """Quantiles of a histogram, one line for each value of the label `by`."""
    return tuple(
        (
            f"p{part * 100:g} {{{{{by}}}}}",
            f"histogram_quantile({part}, sum by (le, {by}) (rate({metric}_bucket[$window])))",
        )
        for part in parts
    )


def rate(metric: str, by: str, labels: str = "") -> tuple[tuple[str, str], ...]:
    """Growth per second of a counter, one line for each value of `by`."""
    legend = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(","))
    return ((legend, f"sum by ({by}) (rate({metric}{labels}[$window]))"),)


def level(metric: str, by: str, how: str = "sum") -> tuple[tuple[str, str], ...]:
    """A gauge, one line for each value of `by`."""
    legend = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(","))
    return ((legend, f"{how} by ({by}) ({metric})"),)


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Requests",
        (
            Panel("Requests by outcome", "reqps", rate("ray_triptych_requests_total", "modality, outcome")),
            Panel(
                "Time to first token", "s", quantiles("ray_triptych_time_to_first_token_seconds", "modality", 0.5, 0.99)
            ),
            Panel(
                "Time per output token",
                "s",
                quantiles("ray_triptych_time_per_output_token_seconds", "modality", 0.5, 0.99),
            ),
            Panel("Whole requests", "s", quantiles("ray_triptych_request_duration_seconds", "modality", 0.5, 0.99)),
            Panel("Under way at the ingress", "short", level("ray_triptych_requests_running", "replica")),
            Panel(
                "Turned away, tried again",
                "ops",
                (
                    *rate("ray_triptych_shed_requests_total", "status"),
                    *rate("ray_triptych_retries_total", "code"),
                ),
            ),
        ),
    ),
    (
        "Stages",
        (
            Panel("Waiting before compute, p90", "s", quantiles("ray_triptych_stage_queue_seconds", "stage", 0.9)),
            Panel("Compute, p90", "s", quantiles("ray_triptych_stage_compute_seconds", "stage", 0.9)),
            Panel("Calls from the ingress, p90", "s", quantiles("ray_triptych_stage_call_seconds", "callee", 0.9)),
            Panel("Calls by outcome", "ops", rate("ray_triptych_stage_calls_total", "callee, outcome")),
            Panel(
                "Running and waiting",
                "short",
                (
                    ("running {{stage}}", "sum by (stage) (ray_triptych_stage_running)"),
                    ("waiting {{stage}}", "sum by (stage) (ray_triptych_stage_waiting)"),
                ),
            ),
            Panel("Ended by outcome", "ops", rate("ray_triptych_stage_requests_total", "stage, outcome")),
            Panel(
                "Mean queue and computation",
                "s",
                tuple(
                    (
                        f"{{{{stage}}}} {kind}",
                        f'sum by (stage) (rate(ray_triptych_stage_spent_seconds_total{{kind="{kind}"}}[$window])) / '
                        "sum by (stage) (rate(ray_triptych_stage_compute_seconds_count[$window]))",
                    )
                    for kind in ("queue", "compute")
                ),
            ),
            Panel("Batch", "short", quantiles("ray_triptych_stage_batch_size", "stage", 0.5, 0.99)),
            Panel("Tokens", "short", rate("ray_triptych_stage_tokens_total", "stage, kind")),
            Panel("Bytes", "Bps", rate("ray_triptych_stage_bytes_total", "stage, kind")),
        ),
    ),
    (
        "Encoders",
        (
            Panel(
                "Cache hits, part of all",
                "percentunit",
                (
                    (
                        "hits",
                        "sum(rate(ray_triptych_encoder_cache_hits_total[$window])) / "
                        "(sum(rate(ray_triptych_encoder_cache_hits_total[$window])) + "
                        "sum(rate(ray_triptych_encoder_cache_misses_total[$window])))",
                    ),
                ),
            ),
            Panel("Cache", "bytes", level("ray_triptych_encoder_cache_bytes", "replica")),
            Panel("Patches per pass", "short", quantiles("ray_triptych_encoder_batch_patches", "replica", 0.5)),
            Panel("Leases", "short", level("ray_triptych_leases", "replica")),
            Panel("Under leases", "bytes", level("ray_triptych_leased_bytes", "replica")),
            Panel("Leases ended", "ops", rate("ray_triptych_leases_ended_total", "how")),
            Panel("Fetches", "ops", rate("ray_triptych_fetches_total", "outcome")),
            Panel("Parked fetches", "short", level("ray_triptych_parked_fetches", "replica")),
        ),
    ),
    (
        "Engines",
        (
            Panel("KV cache in use", "percentunit", level("ray_triptych_kv_cache_use_ratio", "stage, replica", "max")),
            Panel(
                "vLLM: running and waiting",
                "short",
                (
                    ("running {{stage}}", "sum by (stage) (ray_vllm_num_requests_running)"),
                    ("waiting {{stage}}", "sum by (stage) (ray_vllm_num_requests_waiting)"),
                ),
            ),
            Panel("vLLM: preemptions", "ops", rate("ray_vllm_num_preemptions_total", "stage")),
            Panel("vLLM: between tokens", "s", quantiles("ray_vllm_inter_token_latency_seconds", "stage", 0.5, 0.99)),
            Panel("vLLM: queue", "s", quantiles("ray_vllm_request_queue_time_seconds", "stage", 0.5, 0.99)),
            Panel(
                "vLLM: prefix cache hits, part of all",
                "percentunit",
                (
                    (
                        "{{stage}}",
                        "sum by (stage) (rate(ray_vllm_prefix_cache_hits_total[$window])) / "
                        "sum by (stage) (rate(ray_vllm_prefix_cache_queries_total[$window]))",
                    ),
                ),
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's JSON model."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(
            _placed({"type": "row", "title": title, "collapsed": False, "panels": []}, len(panels), 0, y, 24, 1)
        )
        y += 1
        for index, panel in enumerate(row):
            x = index % _COLUMNS * _WIDTH
            panels.append(_placed(_graph(panel), len(panels), x, y + index // _COLUMNS * _HEIGHT, _WIDTH, _HEIGHT))
        y += -(-len(row) // _COLUMNS) * _HEIGHT
    return {
        "title": "Triptych",
        "uid": "triptych",
        "tags": ["triptych"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                {
                    "name": "window",
                    "label": "Rate over",
                    "type": "interval",
                    "query": "1m,5m,15m,1h",
                    "current": {"text": "1m", "value": "1m"},
                },
            ]
        },
        "panels": panels,
    }


def _graph(panel: Panel) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for index, (legend, query) in enumerate(panel.queries)
        ],
    }


def _placed(panel: dict[str, Any], number: int, x: int, y: int, width: int, height: int) -> dict[str, Any]:
    return {"id": number + 1, "gridPos": {"x": x, "y": y, "w": width, "h": height}, **panel}


def to_text() -> str:
    """The file as it should be."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    _OUT.write_text(to_text(), encoding="utf-8")
