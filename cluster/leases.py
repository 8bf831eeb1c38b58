"""The embedding leases that one request holds: taken with its tickets, given up exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from transfer import EmbeddingRef


class RequestLeases:
    """Owner of a request's leases until a prefill engine takes them over.

    A prefill engine that finished the prompt has released the leases itself; in every other end of a request `close`
    does it. Releasing is idempotent at the encoder, so a lease that ended there meanwhile does no harm.
    """

    def __init__(self, release: Callable[[EmbeddingRef], None]) -> None:
        self._release = release
        self._held: dict[str, EmbeddingRef] = {}
        self._closed = False

    @property
    def num_held(self) -> int:
        """Leases that this request has to give up."""
        return len(self._held)

    def take(self, ref: EmbeddingRef) -> None:
        """Become the owner of this lease; after the request's end it is released at once."""
        if self._closed:
            self._release(ref)
        else:
            self._held[ref.transfer_id] = ref

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
            self._release(ref)

    def close(self) -> None:
        """Release what is still held; idempotent."""
        self._closed = True
        for ref in list(self._held.values()):
            self.drop(ref)
