"""Who sent the calls that a replica has: so that a router can tell what others sent from what it knows better itself.

A report is as old as its way was long. Of its own calls a router knows at every moment which have begun and ended; were
they in what it hears, those that have ended since would be taken for somebody else's.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping

from llm_workers.observer import EndedRequest, EngineObserver

SENDER = secrets.token_hex(8)
"""The routers of this process, in every call that they place."""


class SenderAccount:
    """The calls of one replica. An account of what is under way: a sender without calls is not in it."""

    def __init__(self) -> None:
        self._calls: dict[int, tuple[str, float]] = {}
        self._number = 0
        self.total = 0.0

    @contextlib.contextmanager
    def running(self, sender: str, cost: float) -> Iterator[None]:
        """Counts one call from here to its end, however it ends."""
        self._number += 1
        number = self._number
        self._calls[number] = sender, cost
        self.total += cost
        try:
            yield
        finally:
            del self._calls[number]
            self.total -= cost

    def costs(self) -> Mapping[str, float]:
        """By sender, what its calls cost together."""
        costs: dict[str, float] = {}
        for sender, cost in self._calls.values():
            costs[sender] = costs.get(sender, 0.0) + cost
        return costs


class UncountedTokens:
    """An `EngineObserver` that finds, after each step, the tokens in the KV cache beyond what calls were counted with.

    An engine tells the use of its cache after its steps only: calls that have ended since then are in it still, and
    would look like a cache that nobody accounts for.
    """

    def __init__(self, account: SenderAccount, then: EngineObserver) -> None:
        """Args: `then` is told as well."""
        self._account = account
        self._then = then
        self._counted = 0.0

    def request_ended(self, request: EndedRequest) -> None:
        """Only told on."""
        self._then.request_ended(request)

    def step_ended(self, num_running: int) -> None:
        """Take note of what is counted now."""
        self._counted = self._account.total
        self._then.step_ended(num_running)

    def of(self, cached_tokens: float) -> float:
        """Of so many tokens in the cache after the last step."""
        return max(0.0, cached_tokens - self._counted)
