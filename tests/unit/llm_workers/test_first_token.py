"""Prefill gives the first token only where the answer stays what one engine gives, and exactly as that engine would."""

from __future__ import annotations

from typing import Any

import pytest
from random_checkpoints.common import save_byte_tokenizer
from transformers import AutoTokenizer
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tokenizers import TokenizerLike

from configs import TriptychConfig
from llm_workers.first_token import FirstTokens, may_come_from_prefill
from llm_workers.kv_handoff import prefill_sampling
from llm_workers.messages import PrefillRequest, Prompt

_END_OF_TEXT, _EOS = 256, 258


@pytest.fixture(scope="module")
def first_tokens(tmp_path_factory: pytest.TempPathFactory) -> FirstTokens:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_byte_tokenizer(folder, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "{{ messages }}")
    tokenizer: TokenizerLike = AutoTokenizer.from_pretrained(folder)
    return FirstTokens(tokenizer, 16, _EOS, {"eos_token_id": [_EOS, _END_OF_TEXT]})


def _request(num_tokens: int = 3, *, num_given_tokens: int = 0, **fields: Any) -> PrefillRequest:
    params = SamplingParams(**{"output_kind": RequestOutputKind.DELTA, "max_tokens": 20, **fields})
    return PrefillRequest("r", Prompt([65] * num_tokens), params, (), 1.0, num_given_tokens=num_given_tokens)


def _output(token_id: int) -> RequestOutput:
    completion = CompletionOutput(0, "?", [token_id], None, None, finish_reason="length")
    return RequestOutput("r", None, [1], None, [completion], finished=True)


@pytest.mark.parametrize(
    ("num_tokens", "num_given", "fields"),
    [
        (16, 0, {}),
        (32, 0, {}),
        (3, 0, {"output_kind": RequestOutputKind.FINAL_ONLY}),
        (3, 0, {"logprobs": 1}),
        (3, 0, {"seed": 3}),
        (3, 0, {"min_tokens": 1}),
        (3, 0, {"max_tokens": 1}),
        (3, 1, {"max_tokens": 2}),
        (3, 1, {"min_tokens": 2}),
    ],
)
def test_decode_samples_it_where_prefill_must_not(
    first_tokens: FirstTokens, num_tokens: int, num_given: int, fields: dict[str, Any]
) -> None:
    assert first_tokens.sampling(_request(num_tokens, num_given_tokens=num_given, **fields)) is None


def test_a_step_samples_as_the_request_asks_and_ends_by_length(first_tokens: FirstTokens) -> None:
    step = first_tokens.sampling(_request(temperature=0.7, top_k=5, stop=["x"], stop_token_ids=[4], prompt_logprobs=1))
    assert step is not None
    assert (step.temperature, step.top_k, step.prompt_logprobs) == (0.7, 5, 1)
    assert (step.max_tokens, step.ignore_eos, step.stop, step.stop_token_ids) == (1, True, [], [])


def test_prompt_logprobs_come_once(first_tokens: FirstTokens) -> None:
    step = first_tokens.sampling(_request(num_given_tokens=1, prompt_logprobs=1))
    assert step is not None
    assert step.prompt_logprobs is None


@pytest.mark.parametrize(
    ("token", "fields", "text"),
    [
        (66, {}, "c"),
        (0xE2, {}, ""),  # not the whole of a character
        (66, {"stop": ["cd"]}, ""),  # held back: it may be the beginning of a stop string
    ],
)
def test_its_text_is_what_one_engine_would_have_written(
    first_tokens: FirstTokens, token: int, fields: dict[str, Any], text: str
) -> None:
    output = _output(token)
    first_tokens.begin_answer(_request(**fields), output)
    (completion,) = output.outputs
    assert (completion.text, completion.finish_reason, output.finished) == (text, None, False)
    assert output.prompt_token_ids == [65, 65, 65]


@pytest.mark.parametrize(
    ("token", "fields", "text", "stop_reason"),
    [
        (_EOS, {}, "", None),
        (_END_OF_TEXT, {}, "", _END_OF_TEXT),
        (66, {"stop_token_ids": [66]}, "", 66),
        (66, {"stop_token_ids": [66], "include_stop_str_in_output": True}, "c", 66),
        (66, {"stop": "c"}, "", "c"),
        (66, {"stop": "c", "include_stop_str_in_output": True}, "c", "c"),
    ],
)
def test_a_token_that_ends_the_answer_is_its_last_one(
    first_tokens: FirstTokens, token: int, fields: dict[str, Any], text: str, stop_reason: int | str | None
) -> None:
    """Sampled again by decode it would have to come twice: at temperature, empty answers would be too rare."""
    output = _output(token)
    first_tokens.begin_answer(_request(**fields), output)
    (completion,) = output.outputs
    assert output.finished
    assert (completion.finish_reason, completion.stop_reason, completion.text) == ("stop", stop_reason, text)


@pytest.mark.parametrize("token", [_EOS, _END_OF_TEXT])
def test_an_answer_that_is_to_go_on_goes_on(first_tokens: FirstTokens, token: int) -> None:
    output = _output(token)
    first_tokens.begin_answer(_request(ignore_eos=True), output)
    assert (output.finished, output.outputs[0].finish_reason) == (False, None)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"prefill": None}, False),
        ({"kv_transfer": {"connector": "MooncakeConnector"}}, False),
        ({"kv_transfer": {"connector": "MooncakeConnector", "first_token_from_prefill": True}}, True),
        ({"kv_transfer": {"first_token_from_prefill": False}}, False),
        ({"decode": {"engine_args": {"block_size": 32}}}, False),
        ({"prefill": {"engine_args": {"block_size": 32}}, "decode": {"engine_args": {"block_size": 32}}}, True),
    ],
)
def test_which_services_do_it(settings: dict[str, Any], expected: bool) -> None:
    whole = {"model": "m", "prefill": {}, "decode": {}, **settings}
    config = TriptychConfig.model_validate({name: value for name, value in whole.items() if value is not None})
    assert may_come_from_prefill(config) is expected


def test_a_step_whose_token_nobody_sees_has_no_budget_for_thinking() -> None:
    assert prefill_sampling(SamplingParams(thinking_token_budget=5), 0).thinking_token_budget is None
