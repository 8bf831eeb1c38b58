"""What a stream has given so far, and whether it can go on elsewhere when the replica that generates it is lost.

The tokens that the client has had are prefilled again behind the prompt, and decoding goes on after them. That gives
what an undisturbed run gives as long as the next token depends on the tokens alone.
"""

from __future__ import annotations

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams


class Continuation:
    """Remembers the tokens of one sequence."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._given: list[int] = []
        self._ends_whole = True
        self.finished = False

    @property
    def given(self) -> tuple[int, ...]:
        """The tokens that the client has had."""
        return tuple(self._given)

    def add(self, output: RequestOutput) -> None:
        """Take note of an output on its way to the client."""
        for completion in output.outputs:
            self._given.extend(completion.token_ids)
            self._ends_whole = bool(completion.text)
        self.finished = output.finished

    def is_possible(self) -> bool:
        """Whether the rest can be generated elsewhere; from the first token on if there is none yet."""
        if not self._given:
            return True
        # vLLM spells a token beside its logprob by the generated tokens before it, where a character is in pieces.
        spelt_alone = self._params.logprobs is None or (self._ends_whole and not self._params.stop)
        return spelt_alone and can_be_split(self._params)


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
