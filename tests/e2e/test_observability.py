"""What a platform team sees of the running service: metrics at Ray's endpoint, one trace per request, ids, `top`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import requests
from openai import OpenAI

from cluster.metrics import registry
from cluster.metrics.scrape import Samples, scrape
from tests.e2e.conftest import MODEL_NAME
from tests.e2e.media import draw
from tests.e2e.otlp_collector import OTLPCollector, ReceivedSpan
from tests.e2e.servers import Server

_SETTLE_S = 60.0
_NUM_TOKENS = 12
# Nothing is lost or shed here, so nobody counts that.
_OF_FAILURES = (registry.RETRIES, registry.SHED)


def _samples(service: Server) -> Samples:
    endpoints = _status(service)["metrics_endpoints"]
    assert endpoints
    return scrape(endpoints, timeout_s=30.0)


def _status(service: Server) -> dict[str, Any]:
    status: dict[str, Any] = requests.get(f"{service.url}/triptych/status", timeout=30).json()
    return status


def _samples_at_rest(service: Server) -> Samples:
    """What is exported once nothing that earlier tests asked for is still to be counted."""
    deadline = time.monotonic() + 2 * _SETTLE_S
    interval_s = _status(service)["metrics_interval_s"]
    before = _samples(service)
    while True:
        time.sleep(1.25 * interval_s)
        after = _samples(service)
        if _counts(after) == _counts(before):
            return after
        assert time.monotonic() < deadline, "the counters grow although nobody asks"
        before = after


def _counts(samples: Samples) -> dict[str, float]:
    """Sums of the counters, vLLM's included; gauges go up and down as they like."""
    return {name: samples.total(name, {}) for name in samples.names if name.endswith(("_total", "_count"))}


class Growth:
    """How much series have grown since this object was made; Ray exports them every few seconds."""

    def __init__(self, service: Server) -> None:
        self._service = service
        self._before = _samples_at_rest(service)
        self.after = self._before

    def of(self, name: str, **labels: str) -> float:
        """By how much, in sum over all series with these labels, as of the last look."""
        return self.after.total(f"ray_{name}", labels) - self._before.total(f"ray_{name}", labels)

    def wait_for(self, expected: Sequence[tuple[float, str, dict[str, str]]]) -> None:
        """Look until every series has grown by what is expected, or by more."""
        deadline = time.monotonic() + _SETTLE_S
        while short := [(name, labels) for amount, name, labels in expected if self.of(name, **labels) < amount]:
            assert time.monotonic() < deadline, f"these never came to what they should: {short}"
            time.sleep(1.0)
            self.after = _samples(self._service)


def _body(number: int | None, **options: Any) -> dict[str, Any]:
    content: list[Any] = [{"type": "text", "text": "What is this?"}]
    if number is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": draw(number, 160, 120).data_url}})
    messages = [{"role": "user", "content": content}]
    return {"model": MODEL_NAME, "messages": messages, "max_tokens": _NUM_TOKENS, "temperature": 0} | options


def _ask(service: Server, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> requests.Response:
    return requests.post(f"{service.url}/v1/chat/completions", json=body, headers=headers, timeout=120)


def test_every_metric_is_exported_and_counts_rightly(service: Server) -> None:
    """A metric that nobody sets, or that says nonsense, would be found on the day it is needed."""
    grown = Growth(service)
    for number in (7001, 7002, 7001, None):  # a repeated picture, and a question without any
        assert _ask(service, _body(number, stream=True, ignore_eos=True)).ok
    assert _ask(service, _body(None, max_tokens=-1)).status_code == 400
    exact: list[tuple[float, str, dict[str, str]]] = [
        (3, "triptych_requests_total", {"modality": "image", "outcome": "finished"}),
        (1, "triptych_requests_total", {"modality": "text", "outcome": "finished"}),
        (1, "triptych_requests_total", {"outcome": "rejected"}),
        (3, "triptych_time_to_first_token_seconds_count", {"modality": "image"}),
        (3, "triptych_time_per_output_token_seconds_count", {"modality": "image"}),
        (3, "triptych_request_duration_seconds_count", {"modality": "image"}),
        (1, "triptych_encoder_cache_hits_total", {}),
        (2, "triptych_encoder_cache_misses_total", {}),
        (2, "triptych_stage_requests_total", {"stage": "encoder", "outcome": "finished"}),
        (2, "triptych_stage_queue_seconds_count", {"stage": "encoder"}),
        (2, "triptych_stage_compute_seconds_count", {"stage": "encoder"}),
        (3, "triptych_leases_ended_total", {"how": "released"}),
    ]
    for stage in ("prefill", "decode"):
        exact += [
            (4, "triptych_stage_requests_total", {"stage": stage, "outcome": "finished"}),
            (4, "triptych_stage_compute_seconds_count", {"stage": stage}),
            (4, "triptych_stage_queue_seconds_count", {"stage": stage}),
            (4, "triptych_stage_calls_total", {"callee": stage, "outcome": "ok"}),
        ]
    generated = 4 * (_NUM_TOKENS - 1)  # at least: the first token is prefill's
    at_least: list[tuple[float, str, dict[str, str]]] = [
        (generated, "triptych_stage_tokens_total", {"stage": "decode", "kind": "generated"}),
        (generated, "vllm_generation_tokens_total", {"stage": "decode"}),
        (4, "vllm_generation_tokens_total", {"stage": "prefill"}),
        (40, "triptych_stage_tokens_total", {"stage": "prefill", "kind": "prompt"}),
        (100, "triptych_stage_bytes_total", {"stage": "encoder", "kind": "media"}),
        (2, "triptych_stage_batch_size_count", {"stage": "encoder"}),
        (4, "triptych_stage_batch_size_count", {"stage": "decode"}),
    ]
    grown.wait_for(exact + at_least)
    assert {(name, *labels.values()): grown.of(name, **labels) for _, name, labels in exact} == {
        (name, *labels.values()): amount for amount, name, labels in exact
    }
    there = grown.after.names
    expected = [metric for metric in registry.METRICS if metric not in _OF_FAILURES]
    assert [metric.name for metric in expected if not there.issuperset(metric.series_names())] == []
    assert there.issuperset(registry.ENGINE_SERIES), set(registry.ENGINE_SERIES) - there
    for name in ("time_to_first_token", "time_per_output_token", "request_duration"):
        assert grown.of(f"triptych_{name}_seconds_count", modality="image") > 0, name
    assert all(0 <= sample.value <= 1 for sample in grown.after.of("ray_triptych_kv_cache_use_ratio", {}))


def test_the_answer_names_its_request(service: Server) -> None:
    """The id that a client can quote: its own, or one that it is given; and none that could forge log lines."""
    own = _ask(service, _body(None), {"X-Request-Id": "order-66/a"})
    assert own.headers["X-Request-Id"] == "order-66/a"
    assert own.json()["id"].startswith("chatcmpl-order-66/a-")
    given = [_ask(service, _body(None)).headers["X-Request-Id"] for _ in range(2)]
    assert len(set(given)) == 2
    assert all(len(one) >= 32 for one in given)
    refused = _ask(service, _body(None), {"X-Request-Id": "x" * 200})
    assert refused.status_code == 400
    assert "X-Request-Id" in refused.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_one_span_tree_per_request(service: Server, collector: OTLPCollector, stream: bool) -> None:
    """Ingress, encoder, prefill and decode are processes of their own; their spans are one tree all the same."""
    trace_id = f"{0xA0 + stream:032x}"
    caller = "00000000000000aa"
    answer = _ask(service, _body(7100 + stream, stream=stream), {"traceparent": f"00-{trace_id}-{caller}-01"})
    assert answer.ok
    expected = {
        ("POST /v1/chat/completions", "triptych-ingress", None),
        ("encoder", "triptych-ingress", "POST /v1/chat/completions"),
        ("encoder.decode", "triptych-encoder", "encoder"),
        ("encoder.pass", "triptych-encoder", "encoder"),
        ("prefill", "triptych-ingress", "POST /v1/chat/completions"),
        ("prefill.queue", "triptych-prefill", "prefill"),
        ("prefill.compute", "triptych-prefill", "prefill"),
        ("decode", "triptych-ingress", "POST /v1/chat/completions"),
        ("decode.queue", "triptych-decode", "decode"),
        ("decode.compute", "triptych-decode", "decode"),
    }
    spans = collector.wait_for(trace_id, len(expected), _SETTLE_S)
    names = {span.span_id: span.name for span in spans}
    assert {(span.name, span.service, names.get(span.parent_id)) for span in spans} == expected
    assert len(spans) == len(expected)
    (root,) = [span for span in spans if span.parent_id == caller]
    assert root.attributes["http.response.status_code"] == 200
    assert str(root.attributes["triptych.request_id"]).startswith(answer.headers["X-Request-Id"])
    assert all(_begins_within(span, root) for span in spans)


def _begins_within(span: ReceivedSpan, root: ReceivedSpan) -> bool:
    """Moments of other processes are converted from the monotonic clock, which costs far less than this slack."""
    slack_ns = 5_000_000
    return root.start_ns - slack_ns <= span.start_ns <= min(span.end_ns, root.end_ns + slack_ns)


def test_what_nobody_asked_to_trace_is_not_traced(service: Server, client: OpenAI, collector: OTLPCollector) -> None:
    """The ratio is 0 here; a sampler that were not asked would send spans of every request of every test."""
    before = collector.trace_ids()
    client.chat.completions.create(model=MODEL_NAME, messages=_body(7200)["messages"], max_tokens=2)
    trace_id = f"{0xAF:032x}"
    assert _ask(service, _body(None), {"traceparent": f"00-{trace_id}-00000000000000ab-01"}).ok
    collector.wait_for(trace_id, 5, _SETTLE_S)
    assert collector.trace_ids() - before == {trace_id}


def test_top_shows_every_replica(service: Server) -> None:
    """`top` reads what the service says, not what a test made up for it."""
    assert _ask(service, _body(7300, stream=True)).ok
    command = [sys.executable, "-m", "cluster.cli", "top", "--once", "--interval", "1", "--url", service.url]
    wide = os.environ | {"COLUMNS": "160"}
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=wide).stdout
    assert "Triptych E/P/D" in shown
    assert "without latencies" not in shown
    stages = _status(service)["stages"]
    lines = [line.split() for line in shown.splitlines()]
    for stage, replicas in stages.items():
        for replica in replicas:
            name = str(replica["process_id"])
            (row,) = [line for line in lines if name in line]
            assert (row[0] == stage) if stage != "encoder" else (row[0] == name)
    assert any(line[:1] == ["image"] for line in lines)


def test_bench_measures_the_service(service: Server, tmp_path: Path) -> None:
    """The figures come from real answers: every token asked for, pictures with their stages' times, no errors."""
    scenarios = tmp_path / "scenarios.yaml"
    scenarios.write_text(
        "slo: {ttft_s: 100, tpot_s: 100}\n"
        "scenarios:\n"
        "  - {name: text, num_requests: 3, rate: 20, output_tokens: 6}\n"
        "  - {name: repeated, num_requests: 6, rate: 20, burstiness: 0.5, images: 2, image_side: 112, repeated: 0.5,"
        " repeated_pool: 1, output_tokens: 6}\n"
    )
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    command = [sys.executable, "-m", "cluster.cli", "bench", service.url, "--scenarios", str(scenarios)]
    command += ["--json", str(out), "--html", str(page), "--warmups", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    text, repeated = json.loads(out.read_text())["scenarios"]
    assert [(s["requests"], s["errors"]) for s in (text, repeated)] == [(3, 0), (6, 0)], text["error_reasons"]
    for scenario in (text, repeated):
        assert all(request["num_tokens"] == 6 for request in scenario["each"])
        assert 0 < scenario["ttft_p50_s"] <= scenario["ttft_p90_s"] <= scenario["ttft_p99_s"]
        assert 0 < scenario["tpot_p50_s"] <= scenario["tpot_p99_s"]
        assert scenario["goodput_per_s"] == pytest.approx(scenario["requests_per_s"])
    assert set(text["stages"]) == {"prefill", "decode"}
    assert set(repeated["stages"]) == {"encoder", "prefill", "decode"}
    assert all(request["num_media"] == 2 for request in repeated["each"])
    assert page.read_text().count("<svg") == 6
    assert "repeated" in done.stdout
