"""What the stages' replicas publish to Ray's autoscaler, and reading it back in a policy: one window per replica.

Replicas answer Ray's `record_autoscaling_stats` with these names. Ray keeps the samples of the last
`look_back_period_s` of every replica and hands them to the policy, which runs in Serve's controller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.serve._private.common import TimeStampedValue
    from ray.serve.config import AutoscalingContext

QUEUED_TOKENS = "triptych_queued_tokens"
"""Tokens of work that could be computed and is not: embeddings of an encoder, prompt tokens of an engine."""
DONE_TOKENS = "triptych_done_tokens"
"""Of the same tokens those computed since the replica's start."""
BUSY_S = "triptych_busy_seconds"
"""Seconds since the replica's start in which it computed them."""
SEQUENCES = "triptych_sequences"
"""Sequences that an engine has."""
KV_CACHE_USE = "triptych_kv_cache_use"
"""Part of an engine's KV cache that is in use, 0 to 1."""
TOKEN_GAPS = "triptych_token_gaps"
"""Times between two tokens of a sequence that an engine has measured since its start: how many."""
TOKEN_GAPS_S = "triptych_token_gaps_seconds"
"""The sum of those times."""

BACKLOG_NAMES = (QUEUED_TOKENS, DONE_TOKENS, BUSY_S)
DECODE_NAMES = (SEQUENCES, KV_CACHE_USE, TOKEN_GAPS, TOKEN_GAPS_S)


class ReplicaWindow:
    """The samples of one replica; of each name at least two, the oldest first."""

    def __init__(self, series: Mapping[str, Sequence[TimeStampedValue]]) -> None:
        self._series = series

    def latest(self, name: str) -> float:
        """The newest value."""
        return float(self._series[name][-1].value)

    def peak(self, name: str) -> float:
        """The highest value."""
        return float(max(sample.value for sample in self._series[name]))

    def increase(self, name: str) -> float:
        """By how much a total has grown in the window."""
        samples = self._series[name]
        return float(samples[-1].value - samples[0].value)

    def last_increase(self, name: str) -> float:
        """By how much a total has grown between the newest two samples."""
        samples = self._series[name]
        return float(samples[-1].value - samples[-2].value)

    def share(self, name: str) -> float:
        """Of a total of seconds: how much of the window, 0 to 1."""
        samples = self._series[name]
        window_s = float(samples[-1].timestamp - samples[0].timestamp)
        return min(1.0, self.increase(name) / window_s)


@dataclass(frozen=True, slots=True)
class StageWindow:
    """What the replicas of one stage tell. `complete`: every running replica tells, and lately."""

    replicas: tuple[ReplicaWindow, ...]
    complete: bool


def read_signals(context: AutoscalingContext, names: Sequence[str], max_age_s: float) -> StageWindow:
    """The windows of the replicas that have two samples of every name, the newest at most `max_age_s` old."""
    by_name = context.raw_metrics or {}
    oldest = float(context.current_time) - max_age_s
    windows = []
    for replica in context.running_replicas:
        series = {name: by_name.get(name, {}).get(replica, []) for name in names}
        if all(_is_fresh(samples, oldest) for samples in series.values()):
            windows.append(ReplicaWindow(series))
    return StageWindow(tuple(windows), complete=len(windows) == len(context.running_replicas))


def _is_fresh(samples: Sequence[TimeStampedValue], oldest: float) -> bool:
    return len(samples) > 1 and samples[-1].timestamp >= oldest and samples[-1].timestamp > samples[0].timestamp
