"""The encoder's policy: embeddings that wait to be computed, over the measured rate.

Encoders answer with tickets at once, so the requests that Ray counts under way do not tell their load.
"""

from __future__ import annotations

from cluster.autoscaling.backlog import BacklogPolicy


class EncoderBacklogPolicy(BacklogPolicy):
    """Keeps the encoding work that waits under `target_backlog_s` seconds per replica; `encoder_backlog` for short."""

    def __init__(
        self,
        target_backlog_s: float = 1.0,
        target_utilization: float = 0.8,
        shrink_margin: float = 0.25,
        max_signal_age_s: float = 30.0,
    ) -> None:
        super().__init__(target_backlog_s, target_utilization, shrink_margin, max_signal_age_s)
