"""Who sent the calls that a replica has: so that a router can tell what others sent from what it knows better itself.

A report is as old as its way was long. Of its own calls a router knows at every moment which have begun and ended; were
they in what it hears, those that have ended since would be taken for somebody else's.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping

SENDER = secrets.token_hex(8)
"""The routers of this process, in every call that they place."""


class SenderAccount:
    """The calls of one replica. An account of what is under way: a sender without calls is not in it."""

    def __init__(self) -> None:
        self._calls: dict[int, tuple[str, float]] = {}
        self._number = 0

    @contextlib.contextmanager
    def running(self, sender: str, cost: float) -> Iterator[None]:
        """Counts one call from here to its end, however it ends."""
        self._number += 1
        number = self._number
        self._calls[number] = sender, cost
        try:
            yield
        finally:
            del self._calls[number]

    def costs(self) -> Mapping[str, float]:
        """By sender, what its calls cost together."""
        costs: dict[str, float] = {}
        for sender, cost in self._calls.values():
            costs[sender] = costs.get(sender, 0.0) + cost
        return costs
