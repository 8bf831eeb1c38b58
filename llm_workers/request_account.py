"""Counts a worker's requests while they run and tells the observer when each one ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from vllm.outputs import RequestOutput

from llm_workers.messages import DecodeRequest, PrefillRequest
from llm_workers.observer import EndedRequest, EngineObserver, Outcome


@dataclass(slots=True)
class Progress:
    """One running request: its last output so far, and the prompt tokens that have to be computed for it here."""

    output: RequestOutput | None = None
    num_prompt_tokens: int = 0


class RequestAccount:
    """The requests of one worker: those under way, and totals since its start."""

    def __init__(self, observer: EngineObserver, *, computes_prompts: bool) -> None:
        """Args: `computes_prompts`: whether prompts without a KV cache of another engine come here."""
        self._observer = observer
        self._computes_prompts = computes_prompts
        self._running: dict[int, Progress] = {}
        self.num_running = 0
        self.num_finished = 0
        self.num_failed = 0
        self.num_cancelled = 0
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0
        self.embedding_bytes = 0

    @contextlib.contextmanager
    def running(self, request: PrefillRequest | DecodeRequest) -> Iterator[Progress]:
        """Counts `request` as running; whoever runs it keeps `output` up to date."""
        taken = time.monotonic()
        progress = Progress(num_prompt_tokens=len(request.prompt.token_ids) if self._computes_prompts else 0)
        failed = False
        self.num_running += 1
        self._running[id(progress)] = progress
        try:
            yield progress
        except Exception:
            failed = True
            raise
        finally:
            self.num_running -= 1
            del self._running[id(progress)]
            # A reader may leave after the last output, which is no cancelling.
            complete = progress.output is not None and progress.output.finished
            outcome: Outcome = "failed" if failed else "finished" if complete else "cancelled"
            self._end(_ended(request, progress.output, outcome, taken, self._computes_prompts))

    def unanswered_prompts(self) -> list[int]:
        """The lengths of the prompts that are to be computed here and of which no token has come out yet."""
        return [
            progress.num_prompt_tokens
            for progress in self._running.values()
            if progress.output is None and progress.num_prompt_tokens
        ]

    def _end(self, request: EndedRequest) -> None:
        self.num_finished += request.outcome == "finished"
        self.num_failed += request.outcome == "failed"
        self.num_cancelled += request.outcome == "cancelled"
        self.num_prompt_tokens += request.num_prompt_tokens
        self.num_generated_tokens += request.num_generated_tokens
        self.embedding_bytes += request.embedding_bytes
        self._observer.request_ended(request)


def _ended(
    request: PrefillRequest | DecodeRequest,
    output: RequestOutput | None,
    outcome: Outcome,
    taken: float,
    computes_prompts: bool,
) -> EndedRequest:
    metrics = output.metrics if output is not None else None
    computed = computes_prompts and metrics is not None and metrics.first_token_ts > 0
    return EndedRequest(
        request_id=request.request_id,
        traceparent=request.traceparent,
        outcome=outcome,
        taken=taken,
        queued=metrics.queued_ts if metrics else 0.0,
        scheduled=metrics.scheduled_ts if metrics else 0.0,
        first_token=metrics.first_token_ts if metrics else 0.0,
        last_token=metrics.last_token_ts if metrics else 0.0,
        ended=time.monotonic(),
        num_prompt_tokens=len(request.prompt.token_ids) if computed else 0,
        num_generated_tokens=metrics.num_generation_tokens if metrics else 0,
        embedding_bytes=sum(ref.expected_bytes for ref in request.embeddings),
    )
