"""What a stream has given so far, and whether it can go on elsewhere when the replica that generates it is lost.

The tokens that the client has had are prefilled again behind the prompt, and decoding goes on after them. That gives
what an undisturbed run gives as long as the next token depends on the tokens alone.
"""

from __future__ import annotations

from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from llm_workers.resumed_sequence import can_be_split


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
