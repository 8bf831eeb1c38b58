"""The comparison's arithmetic: which figure of which scenario over which, and nothing where one side is missing."""

from __future__ import annotations

import pytest

from benchmarks.ratios import COLOCATED, ratio_lines, ratios
from cluster.cli.bench.results import RequestResult, ScenarioResult


def _scenario(name: str, ttft_s: float, *tpots_s: tuple[int, float]) -> ScenarioResult:
    """Requests of 11 tokens, each of (pictures, time per token)."""
    requests = [RequestResult(images, 0.0, ttft_s, ttft_s + 10 * tpot_s, 11, None) for images, tpot_s in tpots_s]
    return ScenarioResult(name, 1.0, tuple(requests))


def test_ours_is_divided_by_the_colocated_one() -> None:
    results = {
        COLOCATED: [_scenario("1 image", 0.4, (1, 0.01)), _scenario("image burst", 1.0, (0, 0.2), (2, 0.9))],
        "E/P/D": [_scenario("1 image", 0.5, (1, 0.01)), _scenario("image burst", 1.0, (0, 0.05), (2, 0.9))],
        "E/PD": [_scenario("1 image", 0.2, (1, 0.01))],
    }
    found = {(ratio.name, topology): (ours, theirs, ratio.bound) for ratio, topology, ours, theirs in ratios(results)}
    assert found == {
        ("median TTFT, 1 image", "E/P/D"): (0.5, 0.4, 1.3),
        ("median TTFT, 1 image", "E/PD"): (0.2, 0.4, 1.3),
        # Of text alone: the pictures' own tokens are not what a burst of pictures delays.
        ("p99 TPOT of text in an image burst", "E/P/D"): (pytest.approx(0.05), pytest.approx(0.2), 0.6),
    }
    lines = ratio_lines(results)
    assert len(lines) == 3
    assert "1.25   at most 1.3" in lines[0]


def test_without_the_colocated_server_there_is_nothing_to_say() -> None:
    assert ratio_lines({"E/P/D": [_scenario("1 image", 0.5, (1, 0.01))]}) == []
