"""The Grafana dashboard shows metrics that exist, with labels that they have, and every metric is shown somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import make_dashboard
import pytest

from cluster.metrics import registry

DASHBOARD = Path(__file__).resolve().parents[4] / "configs" / "grafana" / "triptych.json"
_SERIES = re.compile(r"\b[a-z]+_[a-z0-9_]+\b(?=\s*[\[){]|\s*$)")
_BY = re.compile(r"\bby \(([^)]*)\)")
_FUNCTIONS = {"histogram_quantile"}


def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return content


def _queries() -> list[str]:
    return [target["expr"] for panel in _content()["panels"] for target in panel.get("targets", [])]


def series_of(query: str) -> set[str]:
    """The names of series in a query of PromQL as the dashboard writes it."""
    without_groups = _BY.sub("", query)
    return set(_SERIES.findall(without_groups)) - _FUNCTIONS


def test_every_query_names_what_is_exported() -> None:
    exported = set(registry.series_names())
    queries = _queries()
    assert len(queries) > 20
    unknown = {name for query in queries for name in series_of(query)} - exported
    assert unknown == set()
    assert all(series_of(query) for query in queries)


def test_every_query_groups_by_labels_that_there_are() -> None:
    """Grouping by a label that no series has gives one nameless line, without an error."""
    labels = {
        name: {*registry.COMMON_LABELS, *metric.labels, "le"}
        for metric in registry.METRICS
        for name in metric.series_names()
    } | {name: {"stage", "ReplicaId", "le"} for name in (*registry.ENGINE_SERIES, *registry.ENGINE_EVENT_SERIES)}
    for query in _queries():
        groups = {label.strip() for group in _BY.findall(query) for label in group.split(",")}
        for name in series_of(query):
            assert groups <= labels[name], query


def test_every_metric_is_shown() -> None:
    shown = {name for query in _queries() for name in series_of(query)}
    assert [metric.name for metric in registry.METRICS if not shown & set(metric.series_names())] == []


def test_a_name_that_is_not_exported_is_seen() -> None:
    """The search for names finds them inside functions, ranges and selectors."""
    assert series_of('sum by (a_b) (rate(ray_x_total{c_d="e_f"}[$window])) / ray_y_bytes') == {
        "ray_x_total",
        "ray_y_bytes",
    }


def test_the_file_is_what_its_table_makes() -> None:
    assert DASHBOARD.read_text(encoding="utf-8") == make_dashboard.to_text(), "run: python tools/make_dashboard.py"


def test_the_model_is_one_that_grafana_loads() -> None:
    """What Grafana's JSON model asks of a dashboard and its panels; it ignores a panel that lacks them."""
    content = _content()
    assert content["title"]
    assert content["uid"]
    assert isinstance(content["schemaVersion"], int)
    panels = content["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"] for variable in content["templating"]["list"]}
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= 24 - place["w"]
        if panel["type"] == "row":
            continue
        assert panel["datasource"]["uid"].strip("${}") in variables
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        assert all(name in variables for target in panel["targets"] for name in re.findall(r"\$(\w+)", target["expr"]))


@pytest.mark.parametrize("metric", registry.METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: registry.Metric) -> None:
    """https://prometheus.io/docs/practices/naming/"""
    assert re.fullmatch(r"triptych_[a-z0-9_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.description.endswith(".")
    assert not set(metric.labels) & set(registry.COMMON_LABELS)


def test_names_are_distinct() -> None:
    names = [metric.name for metric in registry.METRICS]
    assert len(set(names)) == len(names)
