"""The one table of metrics: names, kinds, labels and buckets, and under which names Ray's exporter shows them.

Names follow https://prometheus.io/docs/practices/naming/: base units, `_total` on counters. Ray's exporter puts `ray_`
before every name. Every metric has the labels `stage` and `replica` besides its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

EXPORT_PREFIX = "ray_"
COMMON_LABELS = ("stage", "replica")

_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
_PATCHES = (64.0, 256.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `labels` are those besides `COMMON_LABELS`; `buckets` are upper bounds, of histograms alone."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def exported_name(self) -> str:
        """The name on Ray's endpoint; of a histogram the name before `_bucket` and `_count`."""
        return EXPORT_PREFIX + self.name

    def series_names(self) -> tuple[str, ...]:
        """The names by which queries find this metric.

        Without a histogram's `_sum`, which Ray's exporter makes of the middles of the buckets.
        """
        if self.kind == "histogram":
            return tuple(f"{self.exported_name}_{part}" for part in ("bucket", "count"))
        return (self.exported_name,)


REQUESTS = Metric(
    "triptych_requests_total",
    "counter",
    "Generation requests that ended, by what was in them and how they ended: finished, rejected (4xx, or a 503 for "
    "want of room), failed (other 5xx, or an error inside a stream) or cancelled.",
    ("modality", "outcome"),
)
REQUESTS_RUNNING = Metric("triptych_requests_running", "gauge", "HTTP requests that an ingress replica has under way.")
TIME_TO_FIRST_TOKEN = Metric(
    "triptych_time_to_first_token_seconds",
    "histogram",
    "From a streamed request's arrival at the ingress to its first token there.",
    ("modality",),
    _LATENCY_S,
)
TIME_PER_OUTPUT_TOKEN = Metric(
    "triptych_time_per_output_token_seconds",
    "histogram",
    "Of each streamed sequence: time from its first to its last token, divided by the tokens after the first.",
    ("modality",),
    _TOKEN_S,
)
REQUEST_DURATION = Metric(
    "triptych_request_duration_seconds",
    "histogram",
    "From a generation request's arrival at the ingress to the end of its answer.",
    ("modality",),
    _LATENCY_S,
)
RETRIES = Metric(
    "triptych_retries_total", "counter", "Work tried again after a retryable failure, by its code.", ("code",)
)
SHED = Metric(
    "triptych_shed_requests_total", "counter", "Requests turned away for want of room, by the status told.", ("status",)
)

STAGE_CALLS = Metric(
    "triptych_stage_calls_total",
    "counter",
    "Calls from the ingress to a stage, by how they ended: ok, cancelled or the error's code.",
    ("callee", "outcome"),
)
STAGE_CALL_DURATION = Metric(
    "triptych_stage_call_seconds",
    "histogram",
    "Calls from the ingress to a stage: to its answer, of decode to the first output.",
    ("callee",),
    _LATENCY_S,
)
QUEUE_TIME = Metric(
    "triptych_stage_queue_seconds",
    "histogram",
    "Time that work waited in a stage before it was computed; of an engine also the wait for embeddings or KV caches.",
    (),
    _LATENCY_S,
)
COMPUTE_TIME = Metric(
    "triptych_stage_compute_seconds",
    "histogram",
    "Time in computation: of an item in the encoder its decoding and its pass, of an engine from scheduling on.",
    (),
    _LATENCY_S,
)
SPENT = Metric(
    "triptych_stage_spent_seconds_total",
    "counter",
    "The sums of triptych_stage_queue_seconds ('queue') and triptych_stage_compute_seconds ('compute').",
    ("kind",),
)
BATCH_SIZE = Metric(
    "triptych_stage_batch_size",
    "histogram",
    "Items in one pass of the encoder; requests in one step of an engine.",
    (),
    _COUNTS,
)
BATCH_PATCHES = Metric(
    "triptych_encoder_batch_patches", "histogram", "Patches in one pass of the encoder.", (), _PATCHES
)
TOKENS = Metric(
    "triptych_stage_tokens_total",
    "counter",
    "Tokens that a stage made or took: embeddings of the encoder, prompt tokens of engines that compute prompts "
    "('prompt'), generated tokens ('generated').",
    ("kind",),
)
BYTES = Metric(
    "triptych_stage_bytes_total",
    "counter",
    "Bytes of media that the encoder took and of embeddings that it made; of embeddings that engines were given.",
    ("kind",),
)
STAGE_REQUESTS = Metric(
    "triptych_stage_requests_total",
    "counter",
    "Items (encoder) or requests (engines) that a replica ended: finished, failed or cancelled.",
    ("outcome",),
)
STAGE_RUNNING = Metric(
    "triptych_stage_running", "gauge", "Items or requests that a replica works on, waiting ones included."
)
STAGE_WAITING = Metric("triptych_stage_waiting", "gauge", "Of those, what still waits for its computation.")
KV_CACHE_USE = Metric("triptych_kv_cache_use_ratio", "gauge", "Part of an engine's KV cache that is in use, 0 to 1.")
CACHE_HITS = Metric("triptych_encoder_cache_hits_total", "counter", "Items whose embedding was in the encoder's cache.")
CACHE_MISSES = Metric("triptych_encoder_cache_misses_total", "counter", "Items that had to be encoded.")
CACHE_BYTES = Metric("triptych_encoder_cache_bytes", "gauge", "Embeddings that the encoder's cache holds.")
LEASES = Metric("triptych_leases", "gauge", "Embedding leases that an encoder replica holds.")
LEASES_ENDED = Metric(
    "triptych_leases_ended_total", "counter", "Embedding leases that ended: released or expired.", ("how",)
)
LEASED_BYTES = Metric("triptych_leased_bytes", "gauge", "Embeddings held under leases.")
FETCHES = Metric("triptych_fetches_total", "counter", "Fetches of embeddings: answered or refused.", ("outcome",))
PARKED_FETCHES = Metric("triptych_parked_fetches", "gauge", "Fetches that wait for an embedding still being computed.")

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))

ENGINE_PREFIX = "ray_vllm_"
ENGINE_SERIES = (
    "ray_vllm_num_requests_running",
    "ray_vllm_num_requests_waiting",
    "ray_vllm_kv_cache_usage_perc",
    "ray_vllm_prompt_tokens_total",
    "ray_vllm_generation_tokens_total",
    "ray_vllm_prefix_cache_queries_total",
    "ray_vllm_time_to_first_token_seconds_bucket",
    "ray_vllm_inter_token_latency_seconds_bucket",
    "ray_vllm_request_queue_time_seconds_bucket",
)
"""Those of vLLM's own series, with the labels `stage` and `ReplicaId`, that dashboards may count on."""

ENGINE_EVENT_SERIES = ("ray_vllm_num_preemptions_total", "ray_vllm_prefix_cache_hits_total")
"""More of them, which are there once such a thing has happened."""


def series_names() -> Iterator[str]:
    """Every name that a query may use."""
    for metric in METRICS:
        yield from metric.series_names()
    yield from (*ENGINE_SERIES, *ENGINE_EVENT_SERIES)
