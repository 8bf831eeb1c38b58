"""All links of an embedding client, and on which of them a fetch goes.

To each endpoint there is one link for what is small and several for large embeddings, so that a small one does not wait
behind a large one on the same connection, and so that large ones share more than one.
"""

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count

import zmq

from transfer.channels.zmq_channel import SMALL_BYTES
from transfer.curve import CurveKey
from transfer.link import Link, ZmqLink
from transfer.stream import StreamLink

_SMALL_LANE = 0


class LinkTable:
    """Opens links when they are first needed and has them polled. Not thread-safe: the owner locks.

    Only `poll` runs without the lock, and `lane_of`.
    """

    def __init__(self, liveness_s: float, curve: CurveKey | None, num_streams: int) -> None:
        """`num_streams`: links to each endpoint for large embeddings; with none they come by that of the small ones."""
        self._liveness_s = liveness_s
        self._curve = curve
        self._num_streams = num_streams
        self._num_large = count()
        self._context = zmq.Context(io_threads=max(1, num_streams) if curve else 1)
        self._links: dict[tuple[str, int], Link] = {}
        self.poller = zmq.Poller()
        self.place: Callable[[str, int, memoryview, int], tuple[int, memoryview] | None] = _anywhere

    def __iter__(self) -> Iterator[Link]:
        return iter(list(self._links.values()))

    def lane_of(self, num_bytes: int) -> int:
        """Which of an endpoint's links an embedding of this size is to come by; large ones take turns. Thread-safe."""
        if num_bytes <= SMALL_BYTES or not self._num_streams:
            return _SMALL_LANE
        return _SMALL_LANE + 1 + next(self._num_large) % self._num_streams

    def may_send(self, endpoints: Iterable[str], lane: int) -> bool:
        """Whether to each of these there is a link by which another thread may send while the table's own waits."""
        links = [self._links.get((endpoint, lane)) for endpoint in endpoints]
        return all(link is not None and link.may_send for link in links)

    def open(self, endpoint: str, lane: int = _SMALL_LANE) -> Link:
        """The link, connecting if need be. Raises zmq.ZMQError or OSError when the address is not one."""
        link = self._links.get((endpoint, lane))
        if link is None:
            link = self._links[endpoint, lane] = self._connect(endpoint, lane)
            link.watch(self.poller)
        return link

    def poll(self, timeout_s: float) -> set[object]:
        """What is ready of all that `poller` waits for; empty after so long, or when a link is to be looked after."""
        for link in self._links.values():
            link.watch(self.poller)
            look_s = link.next_look_s()
            timeout_s = timeout_s if look_s is None else min(timeout_s, look_s)
        timeout_ms = int(timeout_s * 1000) + 1 if timeout_s > 0 else 0
        return {source for source, _ in self.poller.poll(timeout_ms)}

    def forget_fetch(self, endpoint: str, lane: int, fetch_id: int) -> None:
        """Nothing is awaited for this fetch any more."""
        link = self._links.get((endpoint, lane))
        if link is not None:
            link.forget(fetch_id)

    def drop(self, link: Link) -> bool:
        """Close a link that is lost; False when that was done before."""
        key = next((key for key, kept in self._links.items() if kept is link), None)
        if key is None:
            return False
        del self._links[key]
        link.unwatch(self.poller)
        link.close()
        return True

    def close(self) -> None:
        """Close all; queued messages get a moment to leave."""
        for link in self:
            self.drop(link)
        self._context.term()

    def _connect(self, endpoint: str, lane: int) -> Link:
        address = _numeric(endpoint)
        if lane == _SMALL_LANE or self._curve is not None or address is None:
            return ZmqLink(self._context, endpoint, self._liveness_s, self._curve)
        return StreamLink(endpoint, address, self._liveness_s, partial(self.place, endpoint, lane))


def _anywhere(endpoint: str, lane: int, first: memoryview, num_bytes: int) -> None:
    return None


def _numeric(endpoint: str) -> tuple[str, int] | None:
    """Address and port of an endpoint that needs no look-up of a name; None for any other."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    try:
        ipaddress.ip_address(host)
        return host, int(port)
    except ValueError:
        return None
