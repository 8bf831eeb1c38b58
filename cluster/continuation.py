"""How a sequence goes on elsewhere when the replica that generated it is lost in its middle.

The tokens that the client has had become part of the prompt, which is prefilled again; decoding goes on behind them.
That gives what an undisturbed run gives as long as the next token depends on the tokens alone.
"""

from __future__ import annotations

from dataclasses import replace

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from cluster.request import Generation


class Continuation:
    """Remembers what one sequence has given so far."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._token_ids: list[int] = []

    @property
    def num_tokens(self) -> int:
        """Tokens that were given."""
        return len(self._token_ids)

    def add(self, output: RequestOutput) -> None:
        """Take note of an output, and give it the prompt that the client asked with."""
        output.prompt_token_ids = self._generation.prompt.token_ids
        for completion in output.outputs:
            self._token_ids.extend(completion.token_ids)

    def rest(self) -> Generation | None:
        """What is left to generate: the whole sequence before its first token; None where it cannot be split there."""
        if not self._token_ids:
            return self._generation
        params = self._generation.params
        if not can_be_split(params):
            return None
        left = params.clone()
        if params.max_tokens is not None:
            left.max_tokens = params.max_tokens - len(self._token_ids)
            if left.max_tokens <= 0:
                return None
        left.min_tokens = max(0, params.min_tokens - len(self._token_ids))
        left.prompt_logprobs = None
        prompt = self._generation.prompt
        return replace(
            self._generation,
            prompt=replace(prompt, token_ids=[*prompt.token_ids, *self._token_ids], text=None),
            params=left,
        )


def can_be_split(params: SamplingParams) -> bool:
    """Whether generating a sequence in two parts gives the same tokens and text as generating it in one.

    Not where the sampler has a state of its own (a grammar, a seed), where it treats tokens of the output differently
    from those of the prompt (penalties, bad words), or where text is held back (stop strings).
    """
    return (
        params.output_kind is RequestOutputKind.DELTA
        and params.structured_outputs is None
        and (params.seed is None or params.temperature == 0)
        and params.presence_penalty == 0
        and params.frequency_penalty == 0
        and not params.bad_words
        and not params.stop
    )
