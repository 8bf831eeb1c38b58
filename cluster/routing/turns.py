"""Ranks replicas by what they cost, equal ones in turn."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

_MAX_OPEN = 4096


class Turns:
    """One turn for each call, however often Serve has it ranked before it finds a place.

    A turn for each ranking would give all calls the same replica where every one of them is ranked twice.
    """

    def __init__(self) -> None:
        self._last = 0
        self._open: OrderedDict[str, int] = OrderedDict()

    def of(self, call_id: str) -> int:
        """The call's own turn; those of calls that never found a place are forgotten, oldest first."""
        if call_id not in self._open:
            self._last += 1
            self._open[call_id] = self._last
            if len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)
        return self._open[call_id]

    def end(self, call_id: str) -> None:
        """The call has a place."""
        self._open.pop(call_id, None)


def rank_by(names: list[str], cost: Callable[[str], Any], turn: int) -> list[str]:
    """The names by their cost, least first; of equal ones the next in turn first."""
    start = turn % len(names) if names else 0
    return sorted(names[start:] + names[:start], key=cost)
