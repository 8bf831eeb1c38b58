"""All links of an embedding client, and on which of them a fetch goes.

To each endpoint there is one link for what is small and several for large embeddings, so that a small one does not wait
behind a large one on the same connection, and so that large ones share more than one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import zmq

from transfer.channels.zmq_channel import CHUNK_BYTES
from transfer.curve import CurveKey
from transfer.link import Link

_SMALL_LANE = 0


@dataclass(slots=True)
class LinkState:
    """A link, and the fetches that wait for something from it."""

    link: Link
    lane: int
    fetch_ids: set[int] = field(default_factory=set)


class LinkTable:
    """Opens links when they are first needed and has them polled. Used by one thread."""

    def __init__(self, liveness_s: float, curve: CurveKey | None, num_streams: int) -> None:
        """`num_streams`: links to each endpoint for large embeddings; with none they come by that of the small ones."""
        self._liveness_s = liveness_s
        self._curve = curve
        self._num_streams = num_streams
        self._num_large = count()
        self._context = zmq.Context(io_threads=max(1, num_streams))
        self._links: dict[tuple[str, int], LinkState] = {}
        self.poller = zmq.Poller()

    def __iter__(self) -> Iterator[LinkState]:
        return iter(list(self._links.values()))

    def lane_of(self, num_bytes: int) -> int:
        """Which of an endpoint's links an embedding of this size is to come by; large ones take turns."""
        if num_bytes <= CHUNK_BYTES or not self._num_streams:
            return _SMALL_LANE
        return _SMALL_LANE + 1 + next(self._num_large) % self._num_streams

    def open(self, endpoint: str, lane: int = _SMALL_LANE) -> LinkState:
        """The link, connecting if need be. Raises zmq.ZMQError when the address is not one."""
        state = self._links.get((endpoint, lane))
        if state is None:
            state = LinkState(Link.connect(self._context, endpoint, self._liveness_s, self._curve), lane)
            self._links[endpoint, lane] = state
            self.poller.register(state.link.socket, zmq.POLLIN)
            self.poller.register(state.link.monitor, zmq.POLLIN)
        return state

    def forget_fetch(self, endpoint: str, lane: int, fetch_id: int) -> None:
        """Nothing is awaited for this fetch any more."""
        state = self._links.get((endpoint, lane))
        if state is not None:
            state.fetch_ids.discard(fetch_id)

    def drop(self, state: LinkState) -> bool:
        """Close a link that is lost; False when that was done before."""
        if self._links.pop((state.link.endpoint, state.lane), None) is None:
            return False
        self.poller.unregister(state.link.socket)
        self.poller.unregister(state.link.monitor)
        state.link.close()
        return True

    def close(self) -> None:
        """Close all; queued messages get a moment to leave."""
        for state in self:
            self.drop(state)
        self._context.term()
