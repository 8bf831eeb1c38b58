"""Which embeddings the engine's requests wait for, and the fetches that bring them: the connector's scheduler side.

    start --> fetching --> stored (pinned) --> request finished: unpinned, leases released
                 |
                 +--> failed: another waiting request's own reference is tried, else its requests are unavailable

One fetch serves all requests that need the same item. A lease is released once, when its request has finished and no
fetch uses it any more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from llm_workers.embedding_params import EmbeddingParams
from llm_workers.embedding_segment import LentBlock, Segment
from llm_workers.embedding_store import EmbeddingStore
from transfer import ArrivedFuture, HeldBlock
from transfer.errors import DeadlineExceeded, EmbeddingNotFound, TriptychError
from transfer.messages import EmbeddingRef

logger = logging.getLogger(__name__)


class Fetcher(Protocol):
    """What this file needs of `transfer.EmbeddingClient`."""

    def fetch_in_place(
        self, ref: EmbeddingRef, timeout_s: float, allocate: Callable[[int], memoryview]
    ) -> ArrivedFuture: ...

    def release(self, ref: EmbeddingRef) -> None: ...


class FailureSink(Protocol):
    """Takes the reason why a request's embedding could not be had."""

    def report(self, request_id: str, error: TriptychError) -> None: ...


@dataclass(slots=True)
class _Request:
    params: EmbeddingParams
    deadline: float
    tried: set[str] = field(default_factory=set)
    pinned: set[str] = field(default_factory=set)
    failed: bool = False


@dataclass(slots=True)
class _Fetch:
    ref: EmbeddingRef
    segment: Segment
    future: ArrivedFuture
    release_when_done: bool = False


class EmbeddingNeeds:
    """Fetches what requests need and says when it is there. The scheduler's thread alone calls it, but for `wake`."""

    def __init__(self, fetcher: Fetcher, store: EmbeddingStore, failures: FailureSink) -> None:
        self._fetcher = fetcher
        self._store = store
        self._failures = failures
        self._requests: dict[str, _Request] = {}
        self._fetches: dict[str, _Fetch] = {}
        self._unavailable: set[str] = set()
        self._woken = threading.Event()

    def start(self, request_id: str, params: EmbeddingParams) -> None:
        """Take up a request."""
        self._requests[request_id] = _Request(params, time.monotonic() + params.timeout_s)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def ready(self, request_id: str, keys: list[str]) -> bool:
        """Whether all of `keys` are in the store and pinned for this request; starts the fetches that are missing."""
        self._collect()
        request = self._requests[request_id]
        if request.failed:
            return False
        for key in keys:
            if key in request.pinned:
                continue
            if key in self._store:
                self._store.pin(key, request_id)
                request.pinned.add(key)
            elif key not in self._fetches and not self._start_fetch(request_id, request, key):
                return False
        if time.monotonic() > request.deadline:
            self._fail(request_id, request, DeadlineExceeded("the request's time ended while it waited for embeddings"))
            return False
        return all(key in request.pinned for key in keys)

    def wait(self, timeout_s: float) -> None:
        """Let time go by until a fetch ends or `wake`, at most so long; for a scheduler that has nothing else to do."""
        if self._fetches:
            self._woken.wait(timeout_s)
            self._woken.clear()

    def wake(self) -> None:
        """End `wait`, or the next one. From any thread."""
        self._woken.set()

    def take_unavailable(self) -> set[str]:
        """Requests that cannot be served since the last call; each is told once."""
        self._collect()
        unavailable, self._unavailable = self._unavailable, set()
        return unavailable

    def finish(self, request_id: str, all_loaded: bool = False) -> None:
        """The request is over, however it ended: unpin its items and release its leases.

        `all_loaded`: it ended by itself, so that no step is on its way that loads items for it.
        """
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        self._unavailable.discard(request_id)
        for key in request.pinned:
            self._store.unpin(key, request_id, all_loaded)
        for key, ref in request.params.refs.items():
            fetch = self._fetches.get(key)
            own = fetch is not None and fetch.ref.transfer_id == ref.transfer_id
            if fetch is not None and own and self._is_wanted(key):
                fetch.release_when_done = True
                continue
            if fetch is not None and not self._is_wanted(key):
                self._drop_fetch(key, fetch)
            self._fetcher.release(ref)

    def close(self) -> None:
        """Finish every request."""
        for request_id in list(self._requests):
            self.finish(request_id)

    def _start_fetch(self, request_id: str, request: _Request, key: str) -> bool:
        ref = request.params.refs.get(key)
        if ref is None:
            self._fail(request_id, request, EmbeddingNotFound(f"the request names no source for item {key}"))
            return False
        if ref.transfer_id in request.tried:
            return True
        request.tried.add(ref.transfer_id)
        timeout_s = max(request.deadline - time.monotonic(), 0.001)
        segment = self._store.new_segment()
        future = self._fetcher.fetch_in_place(ref, timeout_s, segment.allocate)
        self._fetches[key] = _Fetch(ref, segment, future)
        future.add_done_callback(lambda _: self.wake())
        self._collect()  # what is ready on this host is there at once, and so is the reason why it never will be
        return not request.failed

    def _is_wanted(self, key: str) -> bool:
        return any(key in request.params.refs and not request.failed for request in self._requests.values())

    def _drop_fetch(self, key: str, fetch: _Fetch) -> None:
        """Nobody waits for it any more."""
        del self._fetches[key]
        if not fetch.future.cancel():
            fetch.future.add_done_callback(_let_go)
        fetch.segment.discard()
        if fetch.release_when_done:
            self._fetcher.release(fetch.ref)

    def _collect(self) -> None:
        """Move finished fetches into the store, or hand their failure to the requests that wait for them."""
        for key, fetch in list(self._fetches.items()):
            if not fetch.future.done():
                continue
            del self._fetches[key]
            if fetch.release_when_done:
                self._fetcher.release(fetch.ref)
            error = fetch.future.exception()
            if error is None:
                waiting = [
                    request_id
                    for request_id, request in self._requests.items()
                    if key in request.params.refs and not request.failed
                ]
                ref = fetch.ref
                shape = (ref.num_tokens, ref.width)
                arrived = fetch.future.result()
                memory: Segment | LentBlock = fetch.segment
                if isinstance(arrived, HeldBlock):
                    fetch.segment.discard()  # a try on another channel, before this one, may have made its file
                    memory = LentBlock(arrived)
                self._store.put(key, memory, shape, ref.dtype, ref.expected_bytes, waiting)
                for request_id in waiting:
                    self._requests[request_id].pinned.add(key)
            else:
                fetch.segment.discard()
                self._hand_failure(key, error)

    def _hand_failure(self, key: str, error: BaseException) -> None:
        typed = error if isinstance(error, TriptychError) else TriptychError(f"{type(error).__name__}: {error}")
        for request_id, request in self._requests.items():
            if key not in request.params.refs or request.failed:
                continue
            if request.params.refs[key].transfer_id in request.tried:
                self._fail(request_id, request, typed)

    def _fail(self, request_id: str, request: _Request, error: TriptychError) -> None:
        logger.warning("request %s: embedding unavailable: %s", request.params.report_id, error)
        request.failed = True
        self._unavailable.add(request_id)
        self._failures.report(request.params.report_id, error)


def _let_go(future: ArrivedFuture) -> None:
    """What arrived for nobody is given back."""
    if future.exception() is None and isinstance(held := future.result(), HeldBlock):
        held.close()
