"""What the workers report, as metrics and spans: the observers that the replicas give them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.metrics import registry
from cluster.metrics.follower import Reading
from cluster.metrics.instruments import Instruments
from cluster.tracing import Tracing
from encoder_workers.batcher import BatchTimes
from encoder_workers.stats import EncoderStats
from llm_workers.observer import EndedRequest

if TYPE_CHECKING:
    from llm_workers.worker import LLMStats


class EncoderObserver:
    """Takes the passes of an encoder. Called on the tower's thread."""

    def __init__(self, instruments: Instruments, tracing: Tracing) -> None:
        self._instruments = instruments
        self._tracing = tracing

    def pass_ended(self, times: BatchTimes) -> None:
        """A pass and its items."""
        self._instruments.observe(registry.BATCH_SIZE, times.num_items)
        self._instruments.observe(registry.BATCH_PATCHES, times.num_patches)
        pass_s = times.finished - times.pass_begun
        for item in times.items:
            waited_s = (item.begun - item.submitted) + (times.pass_begun - item.prepared)
            _count_spent(self._instruments, waited_s, item.prepared - item.begun + pass_s)
            self._tracing.record("encoder.decode", item.traceparent, item.begun, item.prepared)
            self._tracing.record(
                "encoder.pass",
                item.traceparent,
                times.pass_begun,
                times.finished,
                {"triptych.batch_items": times.num_items, "triptych.batch_patches": times.num_patches},
            )


class EngineObserver:
    """Takes the requests and steps of an engine; `llm_workers.observer.EngineObserver`."""

    def __init__(self, instruments: Instruments, tracing: Tracing, role: str) -> None:
        self._instruments = instruments
        self._tracing = tracing
        self._role = role

    def request_ended(self, request: EndedRequest) -> None:
        """Queue and compute time of what was computed."""
        if request.scheduled:
            queued = request.queued or request.taken
            last = request.last_token or request.ended
            _count_spent(self._instruments, max(0.0, request.scheduled - queued), max(0.0, last - request.scheduled))
            self._tracing.record(f"{self._role}.queue", request.traceparent, queued, request.scheduled)
            self._tracing.record(
                f"{self._role}.compute",
                request.traceparent,
                request.scheduled,
                last,
                {
                    "triptych.prompt_tokens": request.num_prompt_tokens,
                    "triptych.generated_tokens": request.num_generated_tokens,
                },
            )

    def step_ended(self, num_running: int) -> None:
        """The batch of one step."""
        self._instruments.observe(registry.BATCH_SIZE, num_running)


def _count_spent(instruments: Instruments, queue_s: float, compute_s: float) -> None:
    """What one item or request waited and computed."""
    instruments.observe(registry.QUEUE_TIME, queue_s)
    instruments.observe(registry.COMPUTE_TIME, compute_s)
    instruments.count(registry.SPENT, queue_s, {"kind": "queue"})
    instruments.count(registry.SPENT, compute_s, {"kind": "compute"})


def encoder_readings(stats: EncoderStats) -> list[Reading]:
    """An encoder's own counts as metrics."""
    server = stats.server
    return [
        Reading(registry.STAGE_RUNNING, stats.num_pending),
        Reading(registry.STAGE_WAITING, stats.num_waiting),
        Reading(registry.STAGE_REQUESTS, stats.num_encoded, {"outcome": "finished"}),
        Reading(registry.STAGE_REQUESTS, stats.num_failed, {"outcome": "failed"}),
        Reading(registry.TOKENS, stats.num_tokens, {"kind": "embedding"}),
        Reading(registry.BYTES, stats.taken_bytes, {"kind": "media"}),
        Reading(registry.BYTES, stats.encoded_bytes, {"kind": "embedding"}),
        Reading(registry.CACHE_HITS, stats.num_cache_hits),
        Reading(registry.CACHE_MISSES, stats.num_cache_misses),
        Reading(registry.CACHE_BYTES, stats.cached_bytes),
        Reading(registry.LEASES, stats.num_leases),
        Reading(registry.LEASES_ENDED, server.num_released, {"how": "released"}),
        Reading(registry.LEASES_ENDED, server.num_expired, {"how": "expired"}),
        Reading(registry.LEASED_BYTES, server.bytes_held),
        Reading(registry.FETCHES, server.num_fetched, {"outcome": "answered"}),
        Reading(registry.FETCHES, server.num_refused, {"outcome": "refused"}),
        Reading(registry.PARKED_FETCHES, server.num_parked),
    ]


def engine_readings(stats: LLMStats) -> list[Reading]:
    """An engine worker's own counts as metrics."""
    completed = stats.num_finished - stats.num_failed - stats.num_cancelled
    return [
        Reading(registry.STAGE_RUNNING, stats.num_running),
        Reading(registry.STAGE_WAITING, stats.num_waiting),
        Reading(registry.KV_CACHE_USE, stats.kv_cache_use),
        Reading(registry.STAGE_REQUESTS, completed, {"outcome": "finished"}),
        Reading(registry.STAGE_REQUESTS, stats.num_failed, {"outcome": "failed"}),
        Reading(registry.STAGE_REQUESTS, stats.num_cancelled, {"outcome": "cancelled"}),
        Reading(registry.TOKENS, stats.num_prompt_tokens, {"kind": "prompt"}),
        Reading(registry.TOKENS, stats.num_generated_tokens, {"kind": "generated"}),
        Reading(registry.BYTES, stats.embedding_bytes, {"kind": "embedding"}),
    ]
