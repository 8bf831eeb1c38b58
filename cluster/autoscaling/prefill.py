"""The prefill stage's policy: prompt tokens that wait to be computed, over the measured rate.

Prompts that wait for their embeddings are not counted: more prefill engines would not help them.
"""

from __future__ import annotations

from cluster.autoscaling.backlog import BacklogPolicy


class PrefillBacklogPolicy(BacklogPolicy):
    """Keeps the prompts that wait under `target_backlog_s` seconds per replica; `prefill_backlog` for short."""

    def __init__(
        self,
        target_backlog_s: float = 0.5,
        target_utilization: float = 0.8,
        shrink_margin: float = 0.25,
        max_signal_age_s: float = 30.0,
    ) -> None:
        super().__init__(target_backlog_s, target_utilization, shrink_margin, max_signal_age_s)
