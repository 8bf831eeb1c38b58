"""What an engine's worker tells about its requests and steps, to whoever exports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Outcome = Literal["finished", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """One request of a worker, after its end.

    Moments are seconds of the monotonic clock: taken by the worker, queued and first scheduled by the engine, its first
    and last token, ended in the worker. Those that the request never reached are 0.

    Attributes:
        traceparent: the caller's place in a trace (W3C Trace Context), if the request is traced.
        num_prompt_tokens: prompt tokens computed here; 0 where the KV cache was pulled.
        embedding_bytes: embeddings that the request referred to.
    """

    request_id: str
    traceparent: str | None
    outcome: Outcome
    taken: float
    queued: float
    scheduled: float
    first_token: float
    last_token: float
    ended: float
    num_prompt_tokens: int
    num_generated_tokens: int
    embedding_bytes: int


class EngineObserver(Protocol):
    """Told on the worker's event loop; must not block."""

    def request_ended(self, request: EndedRequest) -> None:
        """A request left the worker, however it ended."""
        ...

    def step_ended(self, num_running: int) -> None:
        """The engine reported on a step in which `num_running` requests were computed."""
        ...


class NoObserver:
    """Nobody listens."""

    def request_ended(self, request: EndedRequest) -> None:
        """Nothing."""

    def step_ended(self, num_running: int) -> None:
        """Nothing."""
