"""A resumed sequence reads, wherever it is cut, as vLLM's own detokenizer writes the whole one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from random_checkpoints.common import save_byte_tokenizer
from transformers import AutoTokenizer
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tokenizers import TokenizerLike
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from llm_workers.resumed_sequence import ResumedSequence

_PROMPT = [65, 66, 67]
_SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_TEXT = "naïve, 10 € für 漢字 – 🙂🙃 – and so on"
_LONE_BYTES = [0x20, 0xF0, 0x9F, 0x41, 0x80, 0xC3, 0xC3, 0xA9]
Piece = tuple[str, str | None, int | str | None]
"""What one output says: its text, its finish reason and its stop reason."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerLike:
    """One token per byte, so that most characters are cut into several."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_byte_tokenizer(folder, _SPECIAL_TOKENS, "{{ messages }}")
    return AutoTokenizer.from_pretrained(folder)


def _token_ids(tokenizer: TokenizerLike) -> list[int]:
    """Characters of one to four bytes, special tokens, bytes that are no characters, and an end."""
    text = [tokenizer.encode(part, add_special_tokens=False) for part in (_TEXT, "end")]
    return [*text[0], 256, 257, *_LONE_BYTES, *text[1], 258]


def _params(**fields: Any) -> SamplingParams:
    return SamplingParams(output_kind=RequestOutputKind.DELTA, max_tokens=200, **fields)


def _whole(tokenizer: TokenizerLike, token_ids: Sequence[int], params: SamplingParams) -> list[Piece]:
    """As vLLM's output processor writes it, an output for each token until a stop string or the last token."""
    request = EngineCoreRequest("r", _PROMPT, None, params, None, 0.0, None, None, None)
    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)
    pieces: list[Piece] = []
    for index, token in enumerate(token_ids):
        at_end = index == len(token_ids) - 1
        stop = detokenizer.update([token], at_end)
        reason = "stop" if stop or at_end else None
        pieces.append((detokenizer.get_next_output_text(reason is not None, True), reason, stop))
        if stop:
            break
    return pieces


def _resumed(tokenizer: TokenizerLike, token_ids: Sequence[int], cut: int, params: SamplingParams) -> list[Piece]:
    """What comes of an engine that generates what is behind the cut and knows no stop strings."""
    sequence = ResumedSequence(tokenizer, [*_PROMPT, *token_ids[:cut]], cut, params)
    pieces: list[Piece] = []
    for index, token in enumerate(token_ids[cut:], start=cut):
        at_end = index == len(token_ids) - 1
        completion = CompletionOutput(0, "?", [token], None, None, finish_reason="stop" if at_end else None)
        output = RequestOutput("r", None, [1], None, [completion], finished=at_end)
        sequence.complete(output)
        assert output.prompt_token_ids == _PROMPT
        assert output.finished == (completion.finish_reason is not None)
        pieces.append((completion.text, completion.finish_reason, completion.stop_reason))
        if output.finished:
            break
    return pieces


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"stop": ["字 –", "never"]},
        {"stop": ["字 –"], "include_stop_str_in_output": True},
        {"stop": ["€", "so on"], "min_tokens": 20},
        {"skip_special_tokens": False},
    ],
    ids=["plain", "stop string", "stop string shown", "stop string after min_tokens", "special tokens shown"],
)
def test_wherever_it_is_cut_the_rest_is_the_same(tokenizer: TokenizerLike, fields: dict[str, Any]) -> None:
    token_ids, params = _token_ids(tokenizer), _params(**fields)
    whole = _whole(tokenizer, token_ids, params)
    assert len(whole) > 20
    for cut in range(1, len(whole)):
        assert _resumed(tokenizer, token_ids, cut, params) == whole[cut:], cut


def test_the_engine_is_asked_for_what_is_left(tokenizer: TokenizerLike) -> None:
    params = _params(min_tokens=5, stop=["xyz"], prompt_logprobs=1, temperature=0.5)
    left = ResumedSequence(tokenizer, [*_PROMPT, 1, 2, 3], 3, params).params()
    assert (left.max_tokens, left.min_tokens, left.stop, left.prompt_logprobs) == (197, 2, [], None)
    assert left.temperature == 0.5
    assert (params.max_tokens, params.min_tokens, params.stop) == (200, 5, ["xyz"])
    assert ResumedSequence(tokenizer, [*_PROMPT, *range(9)], 9, params).params().min_tokens == 0


def test_without_detokenizing_there_is_no_text(tokenizer: TokenizerLike) -> None:
    assert {text for text, _, _ in _resumed(tokenizer, [70, 71, 72], 1, _params(detokenize=False))} == {""}


def test_a_sequence_that_ends_by_length_says_so(tokenizer: TokenizerLike) -> None:
    sequence = ResumedSequence(tokenizer, [*_PROMPT, 70], 1, _params())
    completion = CompletionOutput(0, "?", [71], None, None, finish_reason="length")
    output = RequestOutput("r", None, [1], None, [completion], finished=True)
    sequence.complete(output)
    assert (completion.finish_reason, completion.stop_reason, output.finished) == ("length", None, True)
