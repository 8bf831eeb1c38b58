"""A fleet in memory: the routers' own classes rank its replicas, and a clock that the test moves ends their calls."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.serve._private.common import ReplicaID
from ray.serve.request_router import PendingRequest
from vllm.sampling_params import SamplingParams

from cluster.routing.ranked import RankedRouter, Reports
from llm_workers.messages import DecodeRequest, PrefillRequest, Prompt
from transfer import EncodeRequest, MediaItem


@dataclass(frozen=True)
class _Metadata:
    internal_request_id: str


@dataclass(frozen=True)
class Replica:
    """What a router knows of a replica's identity."""

    unique_id: str


class Fleet:
    """Replicas by name behind one router; without Serve around it, so that only the policy decides."""

    def __init__(self, router: type[RankedRouter], names: list[str], **settings: Any) -> None:
        self.router = object.__new__(router)
        self.router.initialize_state(**settings)
        self.names = names
        self.reports: dict[str, dict[str, Any]] = {name: {} for name in names}
        self.now = 0.0
        self._number = 0
        self._ends: list[tuple[float, str, str]] = []

    def send(self, message: object, duration_s: Callable[[str], float] = lambda name: 1.0) -> str:
        """One call; the replica that took it, for `duration_s` of the clock."""
        self._number += 1
        pending: Any = PendingRequest.__new__(PendingRequest)
        pending.args, pending.metadata = [message], _Metadata(str(self._number))
        name = self.router.rank(sorted(self.names), self._reports(), pending)[0]
        self.router.on_request_routed(pending, replica_id(name), None)
        heapq.heappush(self._ends, (self.now + duration_s(name), str(self._number), name))
        return name

    def advance(self, seconds: float) -> None:
        """Let time go by, and calls end."""
        self.now += seconds
        while self._ends and self._ends[0][0] <= self.now:
            _, number, name = heapq.heappop(self._ends)
            self.router.on_request_completed(replica_id(name), number)

    def _reports(self) -> Reports:
        return {name: self.reports[name] for name in self.names}


def replica_id(name: str) -> ReplicaID:
    """As routers are told of it."""
    found: Any = Replica(name)
    return found  # type: ignore[no-any-return]


def prefill_of(prompt: Prompt) -> PrefillRequest:
    """A call to prefill."""
    return PrefillRequest("r", prompt, SamplingParams(), (), 60.0)


def decode_of(num_tokens: int, max_tokens: int | None = None) -> DecodeRequest:
    """A call to decode."""
    return DecodeRequest("r", Prompt([0] * num_tokens), SamplingParams(max_tokens=max_tokens), None, (), 60.0)


def encode_of(*contents: bytes) -> EncodeRequest:
    """A call to an encoder."""
    return EncodeRequest("r", tuple(MediaItem("image", data=content) for content in contents), (), "", 60.0)
