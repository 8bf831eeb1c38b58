"""Which sequences can go on elsewhere: none whose next token depends on more than the tokens before it."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import (
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)

from cluster.continuation import Continuation
from llm_workers.resumed_sequence import can_be_split

_IN_PARTS: dict[str, Any] = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.3,
    "stop": ["x"],
    "stop_token_ids": [3],
    "ignore_eos": True,
    "max_tokens": 5,
    "min_tokens": 2,
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "logit_bias": {3: 1.0},
    "allowed_token_ids": [3, 4],
    "prompt_logprobs": 1,
    "n": 2,
}
_IN_ONE_PIECE: dict[str, Any] = {
    "seed": 3,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "bad_words": ["x"],
    "structured_outputs": StructuredOutputsParams(regex="a+"),
    "thinking_token_budget": 5,
    "repetition_detection": RepetitionDetectionParams(max_pattern_size=2, min_pattern_size=1, min_count=4),
    "extra_args": {"something": 1},
    "output_kind": RequestOutputKind.CUMULATIVE,
}
_NO_PART_IN_THE_NEXT_TOKEN = {
    "watermarking",
    "logprobs",  # see below
    "logprob_token_ids",
    "flat_logprobs",
    "detokenize",
    "spaces_between_special_tokens",
    "stream_interval",
    "skip_clone",
    "output_text_buffer_length",
    "skip_reading_prefix_cache",
    "routed_experts_prompt_start",
    "trace_decode_token_ids",
}


def _streamed(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"output_kind": RequestOutputKind.DELTA, **fields})


@pytest.mark.parametrize("name", _IN_PARTS)
def test_can_be_split(name: str) -> None:
    assert can_be_split(_streamed(**{name: _IN_PARTS[name]}))


@pytest.mark.parametrize("name", _IN_ONE_PIECE)
def test_cannot_be_split(name: str) -> None:
    assert not can_be_split(_streamed(**{name: _IN_ONE_PIECE[name]}))


def test_a_seed_that_draws_nothing_is_no_reason() -> None:
    assert can_be_split(_streamed(seed=3, temperature=0))


def test_every_sampling_parameter_is_decided_on() -> None:
    """A new one of a later vLLM could be one that needs the whole sequence."""
    public = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
    assert public == {*_IN_PARTS, *_IN_ONE_PIECE, *_NO_PART_IN_THE_NEXT_TOKEN}


@pytest.mark.parametrize(("last_text", "stop", "possible"), [("b", [], True), ("", [], False), ("b", ["x"], False)])
def test_logprobs_go_on_only_behind_whole_characters(last_text: str, stop: list[str], possible: bool) -> None:
    continuation = Continuation(_streamed(logprobs=1, stop=stop))
    assert continuation.is_possible()
    for text in ("a", last_text):
        completion = CompletionOutput(0, text, [7], None, None)
        continuation.add(RequestOutput("r", None, [1], None, [completion], finished=False))
    assert continuation.given == (7, 7)
    assert continuation.is_possible() is possible
