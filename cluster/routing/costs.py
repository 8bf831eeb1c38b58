"""What a call costs the replica that takes it, as its router counts it and the replica reports it."""

from __future__ import annotations

from llm_workers.messages import DecodeRequest, PrefillRequest

_ANSWER_TOKENS = 256


def prefill_cost(request: PrefillRequest) -> float:
    """Tokens to compute."""
    return float(len(request.prompt.token_ids))


def decode_cost(request: DecodeRequest) -> float:
    """Tokens that the sequence holds in the KV cache, or soon will: the prompt and an answer of middling length."""
    answer = min(request.params.max_tokens or _ANSWER_TOKENS, _ANSWER_TOKENS)
    return float(len(request.prompt.token_ids) + answer)
