"""What an encoder worker tells of itself."""

from __future__ import annotations

from dataclasses import dataclass

from transfer import ServerStats


@dataclass(frozen=True, slots=True)
class EncoderStats:
    """What a worker holds and has counted. `process_id` tells replicas apart.

    `pending_work` is what the `num_pending` items cost (`Encoder.work`), `total_work` that of all encodings ever begun;
    `num_taken` counts the items of all calls.
    `last_begun` and `last_finished` are the monotonic moments of the last pass, 0 before the first.
    """

    process_id: int
    num_leases: int
    num_pending: int
    num_encoded: int
    num_failed: int
    num_waiting: int
    num_tokens: int
    num_cache_hits: int
    num_cache_misses: int
    cached_bytes: int
    taken_bytes: int
    encoded_bytes: int
    last_begun: float
    last_finished: float
    server: ServerStats
    num_taken: int
    pending_work: float
    total_work: float
