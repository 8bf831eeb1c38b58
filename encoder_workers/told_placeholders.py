"""How a ticket tells the ingress what its item takes in the prompt, for models whose rule the ingress does not know.

The encoder has it of vLLM's own processor of the model; the arrays travel among the ticket's metadata.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from transfer.messages import Metadata

_TARGET, _TOKENS, _RUNS = "placeholder_target", "placeholder_tokens", "placeholder_runs"
_NAMES = (_TARGET, _TOKENS, _RUNS)


@dataclass(frozen=True)
class ToldPlaceholder:
    """One item's place in the prompt.

    Attributes:
        target: token ids that the chat template writes for an item.
        token_ids: what they become.
        embed_runs: (start, length) of the runs of `token_ids` that rows of the embedding stand for.
    """

    target: tuple[int, ...]
    token_ids: tuple[int, ...]
    embed_runs: tuple[tuple[int, int], ...]

    def arrays(self) -> tuple[Metadata, ...]:
        """As metadata of a ticket; of repeated tokens, as most are, the count."""
        counted = [[token_id, len(list(same))] for token_id, same in itertools.groupby(self.token_ids)]
        return (
            Metadata.of(_TARGET, self.target),
            Metadata.of(_TOKENS, counted),
            Metadata.of(_RUNS, self.embed_runs),
        )


def read_told(metadata: Sequence[Metadata]) -> ToldPlaceholder | None:
    """What a ticket's metadata tell; None when they do not."""
    found = {array.name: [int(value) for value in array.values] for array in metadata if array.name in _NAMES}
    if found.keys() != {*_NAMES}:
        return None
    token_ids = [token_id for token_id, count in _pairs(found[_TOKENS]) for _ in range(count)]
    return ToldPlaceholder(tuple(found[_TARGET]), tuple(token_ids), tuple(_pairs(found[_RUNS])))


def without_told(metadata: Sequence[Metadata]) -> tuple[Metadata, ...]:
    """What is left for the language model."""
    return tuple(array for array in metadata if array.name not in _NAMES)


def runs_of(flags: Sequence[bool]) -> tuple[tuple[int, int], ...]:
    """(start, length) of the runs of true flags."""
    runs, start = [], 0
    for flag, same in itertools.groupby(flags):
        length = len(list(same))
        if flag:
            runs.append((start, length))
        start += length
    return tuple(runs)


def _pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2], strict=True))
