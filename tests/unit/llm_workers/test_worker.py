"""A worker around an engine that is none: what prefill hands on, and what a worker without requests tells of itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams

from llm_workers.engine_load import EngineLoad
from llm_workers.messages import DecodeRequest, PrefillRequest, Prompt
from llm_workers.observer import NoObserver
from llm_workers.request_account import RequestAccount
from llm_workers.worker import LLMWorker

_KV_PARAMS = {"remote_host": "10.0.0.1", "remote_port": 5600, "remote_block_ids": [[1]]}


class OneOutputEngine:
    """Answers every request with one finished output, beside which the KV cache is told."""

    async def generate(self, *_: Any, **__: Any) -> AsyncGenerator[RequestOutput, None]:
        completion = CompletionOutput(0, "a", [1], None, None, finish_reason="length")
        yield RequestOutput("r", None, [1], None, [completion], True, kv_transfer_params=dict(_KV_PARAMS))


def _worker() -> LLMWorker:
    worker = object.__new__(LLMWorker)
    worker._account = RequestAccount(NoObserver(), computes_prompts=True)
    worker._load = EngineLoad(NoObserver().step_ended)
    worker._engine = OneOutputEngine()  # type: ignore[assignment]
    worker._failures = worker._first_tokens = None
    return worker


async def test_the_output_of_prefill_does_not_say_where_the_cache_is() -> None:
    """It may be the first one of an answer; the Responses API gives a client what it finds there."""
    result = await _worker().prefill(PrefillRequest("r", Prompt([1]), SamplingParams(), (), 10.0))
    assert result.kv_params == _KV_PARAMS
    assert result.output.kv_transfer_params is None


def test_a_worker_without_requests_uses_no_cache() -> None:
    """The engine's last report is of a step in which there was still one, when that was cancelled."""
    worker = _worker()
    worker._load.kv_cache_use = 0.5
    with worker._account.running(DecodeRequest("r", Prompt([1]), SamplingParams(), None, (), 10.0)):
        assert worker.stats().kv_cache_use == 0.5
    assert worker.stats().kv_cache_use == 0.0
