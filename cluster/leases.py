"""The embedding leases that one request holds: taken with its tickets, kept alive, given up exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from transfer import EmbeddingRef

_RENEWALS_PER_LEASE = 3
"""One that is lost on its way costs nothing."""


class LeaseClient(Protocol):
    """Speaks of leases with the encoders that gave them; `transfer.EmbeddingClient` is one."""

    def release(self, ref: EmbeddingRef) -> None:
        """End a lease. Never waits, idempotent."""

    def renew(self, ref: EmbeddingRef) -> None:
        """Start a lease's time again. Never waits."""


class RequestLeases:
    """Owner of a request's leases until a prefill engine takes them over.

    A lease is shorter than a request may wait, for other items or for room at prefill, so those held are renewed. Who
    renews is who would release: when this process dies, the leases end by themselves.
    A prefill engine that finished the prompt has released the leases itself; in every other end of a request `close`
    does it. Releasing is idempotent at the encoder, so a lease that ended there meanwhile does no harm.
    """

    def __init__(self, client: LeaseClient, lease_s: float) -> None:
        """Args: `lease_s`: for how long encoders keep a ready embedding after its lease's last renewal."""
        self._client = client
        self._renew_every_s = lease_s / _RENEWALS_PER_LEASE
        self._next_renewal: asyncio.TimerHandle | None = None
        self._held: dict[str, EmbeddingRef] = {}
        self._closed = False

    @property
    def num_held(self) -> int:
        """Leases that this request has to give up."""
        return len(self._held)

    def take(self, ref: EmbeddingRef) -> None:
        """Become the owner of this lease; after the request's end it is released at once."""
        if self._closed:
            self._client.release(ref)
            return
        self._held[ref.transfer_id] = ref
        if self._next_renewal is None:
            self._renew_later()

    def holds(self, ref: EmbeddingRef) -> bool:
        """Whether this lease is still the request's."""
        return ref.transfer_id in self._held

    def hand_over(self, refs: Iterable[EmbeddingRef]) -> None:
        """The engine that computed the prompt has released these leases."""
        for ref in refs:
            self._held.pop(ref.transfer_id, None)

    def drop(self, ref: EmbeddingRef) -> None:
        """Release this lease now."""
        if self._held.pop(ref.transfer_id, None) is not None:
            self._client.release(ref)

    def close(self) -> None:
        """Release what is still held; idempotent."""
        self._closed = True
        if self._next_renewal is not None:
            self._next_renewal.cancel()
        for ref in list(self._held.values()):
            self.drop(ref)

    def _renew_later(self) -> None:
        self._next_renewal = asyncio.get_running_loop().call_later(self._renew_every_s, self._renew)

    def _renew(self) -> None:
        self._next_renewal = None
        for ref in self._held.values():
            self._client.renew(ref)
        if self._held:
            self._renew_later()
