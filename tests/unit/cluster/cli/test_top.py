"""The figures of `top`: quantiles of what came between two looks, and rates of replicas that were there before."""

from __future__ import annotations

import math

import pytest
from rich.console import Console

from cluster.cli.main import main
from cluster.cli.top_view import render
from cluster.cli.top_watch import Look, quantile, rate
from cluster.metrics import registry
from cluster.metrics.scrape import Sample, Samples, parse

_TTFT = registry.TIME_TO_FIRST_TOKEN


def _histogram(*counts: tuple[str, float]) -> Samples:
    """Cumulative counts by upper bound, of two replicas with half of them each."""
    return Samples(
        [
            Sample(f"{_TTFT.exported_name}_bucket", {"le": bound, "modality": "image", "replica": replica}, count / 2)
            for bound, count in counts
            for replica in ("a", "b")
        ]
    )


def test_quantiles_are_of_what_came_in_between() -> None:
    """As Prometheus' histogram_quantile over the difference: 2 up to 0.1 s, 8 between 0.1 and 0.2 s."""
    before = _histogram(("0.1", 100), ("0.2", 100), ("+Inf", 100))
    now = _histogram(("0.1", 102), ("0.2", 110), ("+Inf", 110))
    assert quantile(_TTFT, 0.5, {"modality": "image"}, before, now) == pytest.approx(0.1 + 0.1 * 3 / 8)
    assert quantile(_TTFT, 0.1, {"modality": "image"}, before, now) == pytest.approx(0.05)
    assert math.isnan(quantile(_TTFT, 0.5, {"modality": "text"}, before, now))
    assert math.isnan(quantile(_TTFT, 0.5, {}, now, now))


def test_beyond_the_last_bound_its_value_is_the_answer() -> None:
    now = _histogram(("0.1", 0), ("0.2", 1), ("+Inf", 10))
    assert quantile(_TTFT, 0.99, {}, Samples([]), now) == 0.2


def test_a_page_of_metrics_is_read() -> None:
    page = (
        "# HELP ray_node_cpu c\n# TYPE ray_node_cpu gauge\nray_node_cpu 1.0\n"
        "# HELP ray_triptych_leases l\n# TYPE ray_triptych_leases gauge\n"
        'ray_triptych_leases{stage="encoder",replica="a"} 2.0\nray_triptych_leases{stage="encoder",replica="b"} 3.0\n'
    )
    samples = Samples(parse(page))
    assert samples.names == {"ray_triptych_leases"}
    assert samples.total("ray_triptych_leases", {"stage": "encoder"}) == 5
    assert samples.total("ray_triptych_leases", {"replica": "b"}) == 3


def _look(moment: float, process_id: int, num_finished: int, samples: Samples | None) -> Look:
    replica = {
        "process_id": process_id,
        "num_running": 1,
        "num_waiting": 0,
        "num_finished": num_finished,
        "num_failed": 0,
        "num_prompt_tokens": 0,
        "num_generated_tokens": 10 * num_finished,
        "kv_cache_use": 0.25,
    }
    problem = None if samples is not None else "no metrics from http://node:1/metrics: refused"
    return Look("http://here", moment, "PD", {"decode": [replica]}, samples, problem)


def test_rates_are_per_second_and_only_of_replicas_that_were_there() -> None:
    console = Console(width=160)
    with console.capture() as shown:
        console.print(render([_look(10.0, 7, 100, None), _look(12.0, 7, 103, None)]))
    row = next(line.split() for line in shown.get().splitlines() if line.startswith("decode"))
    assert row == ["decode", "7", "1", "0", "1.5", "0.0", "15.0", "25%", "0"]
    assert "without latencies: no metrics from http://node:1/metrics" in shown.get()
    with console.capture() as shown:
        console.print(render([_look(10.0, 7, 100, None), _look(12.0, 8, 3, None)]))
    row = next(line.split() for line in shown.get().splitlines() if line.startswith("decode"))
    assert row[4:7] == ["-", "-", "-"]


def test_a_counter_that_began_anew_has_no_negative_rate() -> None:
    def requests(total: float) -> Samples:
        return Samples([Sample(registry.REQUESTS.exported_name, {"modality": "text", "outcome": "finished"}, total)])

    name = registry.REQUESTS.exported_name
    assert rate(_look(0.0, 1, 0, requests(50)), _look(2.0, 1, 0, requests(54)), name, {}) == 2.0
    assert rate(_look(0.0, 1, 0, requests(50)), _look(2.0, 1, 0, requests(4)), name, {}) == 0.0


def test_nobody_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--url", "http://127.0.0.1:9"]) == 1
    assert "no Triptych service answers at http://127.0.0.1:9" in capsys.readouterr().err
