"""A sequence that another engine began: what is left of its limits, and its text as if one engine had made it all."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tokenizers import TokenizerLike
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import IncrementalDetokenizer


class ResumedSequence:
    """Completes the outputs of an engine whose prompt ends with tokens that the client has had already.

    The engine's own text would begin anew behind those: a character or a stop string that began before would be lost.
    So text and stop strings come from a detokenizer that is shown the whole sequence.
    """

    def __init__(
        self, tokenizer: TokenizerLike | None, token_ids: Sequence[int], num_given: int, params: SamplingParams
    ) -> None:
        """Args: `token_ids`: of the prompt and the `num_given` tokens after it; `params`: of the whole sequence."""
        num_prompt = len(token_ids) - num_given
        self._prompt_token_ids = list(token_ids[:num_prompt])
        self._num_given = num_given
        self._params = params
        # As vLLM's own output processor makes it of a request.
        request = EngineCoreRequest(
            request_id="resumed",
            prompt_token_ids=self._prompt_token_ids,
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        self._detokenizer = IncrementalDetokenizer.from_new_request(tokenizer if params.detokenize else None, request)
        self._detokenizer.update(list(token_ids[num_prompt:]), False)
        self._detokenizer.get_next_output_text(False, True)

    def params(self) -> SamplingParams:
        """For the engine: what is left to generate."""
        left = self._params.clone()
        if left.max_tokens is not None:
            left.max_tokens -= self._num_given
        left.min_tokens = max(0, left.min_tokens - self._num_given)
        left.stop = []
        left.output_text_buffer_length = 0
        left.prompt_logprobs = None  # They came with the first token.
        return left

    def complete(self, output: RequestOutput) -> None:
        """Make an output of the engine what it would be of the whole sequence; a stop string finishes it."""
        output.prompt_token_ids = self._prompt_token_ids
        (completion,) = output.outputs
        at_stop_token = completion.finish_reason == "stop"
        stop_string = self._detokenizer.update(list(completion.token_ids), at_stop_token)
        if stop_string is not None:
            completion.finish_reason, completion.stop_reason = "stop", stop_string
            output.finished = True
        completion.text = self._detokenizer.get_next_output_text(output.finished, True)


def can_be_split(params: SamplingParams) -> bool:
    """Whether generating a sequence in two parts gives the same tokens and text as generating it in one.

    Not where the sampler has a state of its own (a grammar, a seed), and not where it treats generated tokens in
    another way than those of the prompt. A repetition penalty counts both alike.
    """
    return (
        params.output_kind is RequestOutputKind.DELTA
        and params.structured_outputs is None
        and (params.seed is None or params.temperature == 0)
        and params.presence_penalty == 0
        and params.frequency_penalty == 0
        and not params.bad_words
        and params.thinking_token_budget is None
        and params.repetition_detection is None
        and not params.extra_args
    )
