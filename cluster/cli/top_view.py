"""Draws what `triptych top` saw as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.cli.top_watch import Look, modalities, quantile, rate
from cluster.metrics import registry

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def render(looks: Sequence[Look]) -> RenderableType:
    """The view of two looks or more, oldest first: replicas since the last but one, requests since the first."""
    first, before, now = looks[0], looks[-2], looks[-1]
    parts: list[RenderableType] = [
        Text(f"Triptych {now.topology} at {now.url}"),
        _requests(first, now),
        *([_encoders(before, now)] if "encoder" in now.stages else []),
        _engines(before, now),
        Text(
            f"requests: the last {now.moment - first.moment:.0f} s, as far as exported; "
            f"replicas: the last {now.moment - before.moment:.0f} s",
            style="dim",
        ),
    ]
    if now.problem is not None:
        parts.append(Text(f"without latencies: {now.problem}"))
    return Group(*parts)


def _requests(before: Look, now: Look) -> Table:
    table = _table("requests", "done/s", "not served/s", "TTFT p50", "p99", "TPOT p50", "p99", "whole p50", "p99")
    for modality in modalities(now):
        labels = {"modality": modality}
        done = rate(before, now, registry.REQUESTS.exported_name, {**labels, "outcome": "finished"})
        ended = rate(before, now, registry.REQUESTS.exported_name, labels)
        cells = [modality, _number(done), _number(ended - done)]
        for metric in (registry.TIME_TO_FIRST_TOKEN, registry.TIME_PER_OUTPUT_TOKEN, registry.REQUEST_DURATION):
            for part in (0.5, 0.99):
                seconds = (
                    quantile(metric, part, labels, before.samples, now.samples)
                    if before.samples is not None and now.samples is not None
                    else math.nan
                )
                cells.append(_milliseconds(seconds))
        table.add_row(*cells)
    return table


def _encoders(before: Look, now: Look) -> Table:
    table = _table("encoder", "pending", "queued", "items/s", "tokens/s", "cache hits", "cache", "leases", "leased")
    earlier = _by_process(before, "encoder")
    for replica in now.stages["encoder"]:
        was = earlier.get(replica["process_id"])
        asked = replica["num_cache_hits"] + replica["num_cache_misses"]
        table.add_row(
            str(replica["process_id"]),
            str(replica["num_pending"]),
            str(replica["num_waiting"]),
            _rate_of(was, replica, "num_encoded", before, now),
            _rate_of(was, replica, "num_tokens", before, now),
            f"{replica['num_cache_hits'] / asked:.0%}" if asked else "-",
            _size(replica["cached_bytes"]),
            str(replica["num_leases"]),
            _size(replica["server"]["bytes_held"]),
        )
    return table


def _engines(before: Look, now: Look) -> Table:
    table = _table(
        "engine", "replica", "running", "waiting", "requests/s", "prompt tokens/s", "tokens/s", "KV", "failed"
    )
    for stage in (name for name in now.stages if name != "encoder"):
        earlier = _by_process(before, stage)
        for replica in now.stages[stage]:
            was = earlier.get(replica["process_id"])
            table.add_row(
                stage,
                str(replica["process_id"]),
                str(replica["num_running"]),
                str(replica["num_waiting"]),
                _rate_of(was, replica, "num_finished", before, now),
                _rate_of(was, replica, "num_prompt_tokens", before, now),
                _rate_of(was, replica, "num_generated_tokens", before, now),
                f"{replica['kv_cache_use']:.0%}",
                str(replica["num_failed"]),
            )
        if not now.stages[stage]:
            table.add_row(stage, "none answers", *["-"] * 7)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _by_process(look: Look, stage: str) -> dict[int, Mapping[str, Any]]:
    return {replica["process_id"]: replica for replica in look.stages.get(stage, ())}


def _rate_of(was: Mapping[str, Any] | None, replica: Mapping[str, Any], field: str, before: Look, now: Look) -> str:
    """Growth per second of one of a replica's counts; a dash for a replica that was not there before."""
    if was is None:
        return "-"
    return _number((replica[field] - was[field]) / (now.moment - before.moment))


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _milliseconds(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{seconds * 1e3:.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.1f} ms"


def _size(num_bytes: float) -> str:
    for unit in _UNITS[:-1]:
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} {_UNITS[-1]}"
