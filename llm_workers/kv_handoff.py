"""How prefill is asked to keep its KV cache for a decode worker to pull.

The parameters that come back are opaque and go to decode as they are. NIXL and the pull connectors made after it
(Mooncake on Ascend) take the same first request.
"""

from __future__ import annotations

from vllm.sampling_params import RequestOutputKind, SamplingParams

from llm_workers.messages import KVParams


def prefill_kv_params() -> KVParams:
    """Asks the prefill engine to hold the cache for a decode worker not yet known."""
    return {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "remote_engine_id": None,
        "remote_block_ids": None,
        "remote_host": None,
        "remote_port": None,
    }


def one_token_step(params: SamplingParams, num_given_tokens: int) -> SamplingParams:
    """Parameters of a prefill step: one token, sampled as `params` say.

    The step must end by length, since connectors drop the cache of a request that ended in another way; so nothing
    that stops early is kept. Prompt logprobs are kept, since only this stage computes the prompt; unless the
    client has had them, as it has tokens of the answer.
    """
    step = params.clone()
    if num_given_tokens:
        step.prompt_logprobs = None
    step.n = 1
    step.max_tokens = 1
    step.min_tokens = 0
    step.ignore_eos = True
    step.stop = []
    step.stop_token_ids = []
    step.output_text_buffer_length = 0
    step.output_kind = RequestOutputKind.FINAL_ONLY
    return step


def prefill_sampling(params: SamplingParams, num_given_tokens: int) -> SamplingParams:
    """Parameters of a prefill step of whose token nothing is used, where decode samples the first token itself."""
    step = one_token_step(params, num_given_tokens)
    step.bad_words = None
    step.logprobs = None
    step.structured_outputs = None
    step.thinking_token_budget = None
    # Greedy and without penalties: the cheapest way to a token that nobody sees.
    step.temperature = 0.0
    step.top_p = 1.0
    step.top_k = 0
    step.min_p = 0.0
    step.seed = None
    step.presence_penalty = 0.0
    step.frequency_penalty = 0.0
    step.repetition_penalty = 1.0
    return step


def decode_sampling(params: SamplingParams) -> SamplingParams:
    """Parameters of decoding from a pulled KV cache: the prompt is not computed again, so it has no logprobs here."""
    if params.prompt_logprobs is None:
        return params
    step = params.clone()
    step.prompt_logprobs = None
    return step
