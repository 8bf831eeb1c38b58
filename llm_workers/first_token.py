"""The first token of an answer, given by prefill, so that a reader has it while the KV cache is on its way to decode.

Decode goes on behind it: its prompt is one token longer than the cache that it pulls, and that token is what it
computes first. Where this could give another answer than one engine gives, decode samples the first token itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.tokenizers import TokenizerLike

from configs import TriptychConfig
from configs.kv_transfer import NIXL
from llm_workers.kv_handoff import one_token_step
from llm_workers.messages import PrefillRequest
from llm_workers.resumed_sequence import ResumedSequence, can_be_split

_DECIDE_BLOCKS = ("block_size", "attention_backend", "attention_config", "kv_cache_dtype")
"""Engine arguments on which the size of a KV cache block depends."""


def may_come_from_prefill(config: TriptychConfig) -> bool:
    """Whether decode can pull a KV cache that lacks the last token of its prompt.

    Connectors match blocks from the end of the prompt, so both stages must cut it into the same ones.
    """
    if config.prefill is None:
        return False
    asked = config.kv_transfer.first_token_from_prefill
    if not (config.kv_transfer.connector == NIXL if asked is None else asked):
        return False
    ours, theirs = config.prefill.engine_args, config.decode.engine_args
    return all(ours.get(name) == theirs.get(name) for name in _DECIDE_BLOCKS)


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """What a prefill engine has to know to give first tokens.

    Attributes:
        block_size: tokens of a block of the KV cache.
        eos_token_id: the token that ends an answer.
        generation_config: the checkpoint's, as vLLM reads it; it may name more such tokens.
    """

    tokenizer: TokenizerLike | None
    block_size: int
    eos_token_id: int | None
    generation_config: dict[str, Any]

    def sampling(self, request: PrefillRequest) -> SamplingParams | None:
        """Parameters of a prefill step that samples the first token; None where decode has to."""
        params, num_given = request.params, request.num_given_tokens
        if (
            not can_be_split(params)
            or params.logprobs is not None
            or params.min_tokens > num_given
            or params.max_tokens is None
            or params.max_tokens <= num_given + 1
            # One more token would take a block more than there is to pull.
            or len(request.prompt.token_ids) % self.block_size == 0
        ):
            return None
        return one_token_step(params, num_given)

    def begin_answer(self, request: PrefillRequest, output: RequestOutput) -> None:
        """Make the output of that step the first one of the answer, and the last one where its token ends it.

        Decode must not sample such a token again: an answer that ends at once would come too seldom.
        """
        (completion,) = output.outputs
        (token_id,) = completion.token_ids
        params = request.params.clone()
        params.update_from_generation_config(self.generation_config, self.eos_token_id)
        at_eos = token_id == params.eos_token_id
        output.finished = at_eos or token_id in (params.stop_token_ids or ())
        completion.finish_reason = "stop" if output.finished else None
        completion.stop_reason = token_id if output.finished and not at_eos else None
        token_ids, num_given = request.prompt.token_ids, request.num_given_tokens
        ResumedSequence(self.tokenizer, token_ids, num_given, request.params).complete(output)
