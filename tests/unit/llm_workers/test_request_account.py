"""A worker's books: every request that began has ended once, under the right name, whichever way its reader left."""

from __future__ import annotations

import asyncio

import pytest
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.metrics.stats import RequestStateStats

from llm_workers.messages import DecodeRequest, Prompt
from llm_workers.observer import EndedRequest
from llm_workers.request_account import RequestAccount
from transfer import WorkerLost


class Observer:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.ended: list[EndedRequest] = []

    def request_ended(self, request: EndedRequest) -> None:
        self.ended.append(request)

    def step_ended(self, num_running: int) -> None:
        raise AssertionError("no engine here")


_REQUEST = DecodeRequest("r", Prompt([1, 2, 3]), SamplingParams(), None, (), 10.0, traceparent="00-1-2-01")


def _output(*, finished: bool) -> RequestOutput:
    stats = RequestStateStats(
        num_generation_tokens=5, queued_ts=1.0, scheduled_ts=2.0, first_token_ts=3.0, last_token_ts=4.0
    )
    return RequestOutput("r", None, [1], None, [], finished, metrics=stats)


@pytest.mark.parametrize(
    ("error", "finished", "outcome"),
    [
        (None, True, "finished"),
        (None, False, "cancelled"),  # the engine ended nothing: the reader left
        (asyncio.CancelledError(), False, "cancelled"),
        (GeneratorExit(), True, "finished"),  # the reader left after the last output
        (WorkerLost("x"), False, "failed"),
        (WorkerLost("x"), True, "failed"),
    ],
)
def test_each_end_has_its_name(error: BaseException | None, finished: bool, outcome: str) -> None:
    observer = Observer()
    account = RequestAccount(observer, computes_prompts=True)
    try:
        with account.running(_REQUEST) as progress:
            assert account.num_running == 1
            progress.output = _output(finished=finished)
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    (ended,) = observer.ended
    assert ended.outcome == outcome
    assert (ended.queued, ended.scheduled, ended.first_token, ended.last_token) == (1.0, 2.0, 3.0, 4.0)
    assert (ended.num_prompt_tokens, ended.num_generated_tokens) == (3, 5)
    assert ended.traceparent == "00-1-2-01"
    assert account.num_running == 0
    assert account.num_finished + account.num_failed + account.num_cancelled == 1
    assert account.num_generated_tokens == 5


def test_a_pulled_prompt_is_not_counted_as_computed() -> None:
    observer = Observer()
    account = RequestAccount(observer, computes_prompts=False)
    with account.running(_REQUEST) as progress:
        progress.output = _output(finished=True)
    assert account.num_prompt_tokens == 0


def test_a_request_without_any_output_has_no_moments() -> None:
    observer = Observer()
    with pytest.raises(WorkerLost), RequestAccount(observer, computes_prompts=True).running(_REQUEST):
        raise WorkerLost("x")
    assert (observer.ended[0].scheduled, observer.ended[0].num_prompt_tokens) == (0.0, 0)
