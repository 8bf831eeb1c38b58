"""What the ingress notes of a request: which outcome it counts as, and times of streamed sequences alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest
from opentelemetry.trace import INVALID_SPAN
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from cluster.ingress.observation import RequestObservation, RequestObserver
from cluster.metrics import registry
from cluster.metrics.instruments import Instruments
from cluster.metrics.registry import Metric
from cluster.tracing import Tracing
from configs import ObservabilityConfig


def _observation() -> RequestObservation:
    return RequestObservation("r", "/v1/chat/completions", INVALID_SPAN)


def _output(*token_ids: int) -> RequestOutput:
    return RequestOutput("r", None, [1], None, [CompletionOutput(0, "", list(token_ids), None, None)], False)


@pytest.mark.parametrize(
    ("status", "complete", "error", "cancelled", "outcome"),
    [
        (200, True, None, False, "finished"),
        (200, True, "worker_lost", False, "failed"),  # an error inside the stream
        (400, True, "bad_media", False, "rejected"),
        (429, True, None, False, "rejected"),
        (503, True, "busy", False, "rejected"),
        (503, True, "queue_full", False, "rejected"),
        (503, True, None, False, "rejected"),  # turned away before any stage was asked
        (503, True, "worker_lost", False, "failed"),
        (503, True, "encoder_lost", False, "failed"),
        (503, True, "out_of_memory", False, "failed"),
        (500, True, None, False, "failed"),
        (504, True, "deadline_exceeded", False, "failed"),
        (200, False, None, False, "cancelled"),
        (200, True, None, True, "cancelled"),
        (None, False, None, False, "cancelled"),
        (None, False, "worker_lost", True, "cancelled"),
    ],
)
def test_outcomes(status: int | None, complete: bool, error: str | None, cancelled: bool, outcome: str) -> None:
    observation = _observation()
    observation.error_code, observation.cancelled = error, cancelled
    assert observation.outcome(status, complete) == outcome


@pytest.mark.parametrize(
    ("status", "error", "shed"),
    [
        (429, None, {"status": "429"}),
        (503, "queue_full", {"status": "503"}),
        (503, "worker_lost", None),
        (400, "bad_media", None),
    ],
)
def test_only_want_of_room_counts_as_turned_away(
    status: int, error: str | None, shed: dict[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that is lost again and again is no reason for more replicas."""
    counted: dict[str, Mapping[str, str]] = {}

    def count(metric: Metric, amount: float = 1, labels: Mapping[str, str] = MappingProxyType({})) -> None:
        counted[metric.name] = labels

    instruments = Instruments("ingress", "r")
    monkeypatch.setattr(instruments, "count", count)
    monkeypatch.setattr(instruments, "set", lambda metric, value: None)
    observation = _observation()
    observation.error_code = error
    RequestObserver(instruments, Tracing(ObservabilityConfig(), "ingress", "r")).end(observation, status, True, {})
    assert counted.get(registry.SHED.name) == shed


@pytest.mark.parametrize(("found", "label"), [([], "text"), (["image"], "image"), (["image", "audio"], "mixed")])
def test_the_modality_is_one_word(found: list[str], label: str) -> None:
    observation = _observation()
    observation.modalities.update(found)
    assert observation.modality == label


@pytest.mark.parametrize("kind", [RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE])
def test_tokens_are_counted_once(kind: RequestOutputKind) -> None:
    """Cumulative outputs repeat what came before; the time per token would come out too small."""
    params = SamplingParams(output_kind=kind)
    observation = _observation()
    outputs = [_output(1), _output(2, 3)] if kind is RequestOutputKind.DELTA else [_output(1), _output(1, 2, 3)]
    for output in outputs:
        observation.see_output("r", params, output)
    (sequence,) = observation._sequences.values()
    assert sequence.num_tokens == 3
    assert observation.token_times_s() == [(sequence.last - sequence.first) / 2]
    assert observation.first_token_s() == sequence.first - observation.arrived


def test_a_request_that_is_not_streamed_has_no_first_token() -> None:
    observation = _observation()
    observation.see_output("r", SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY), _output(1, 2, 3))
    assert observation.first_token_s() is None
    assert observation.token_times_s() == []
