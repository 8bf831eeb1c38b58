"""The replicas' side of the signals: keeps what the workers tell and gives it to Ray's `record_autoscaling_stats`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.autoscaling.signals import (
    BUSY_S,
    DONE_TOKENS,
    KV_CACHE_USE,
    QUEUED_TOKENS,
    SEQUENCES,
    TOKEN_GAPS,
    TOKEN_GAPS_S,
)
from cluster.autoscaling.work_meter import WorkMeter
from encoder_workers.batcher import BatchTimes
from encoder_workers.stats import EncoderStats
from llm_workers.observer import EndedRequest, EngineObserver
from transfer import EncodeReply

if TYPE_CHECKING:
    from llm_workers.worker import LLMStats

# Of the mean size of an item, the part that one more item decides.
_SMOOTHING = 0.05


class EncoderSignals:
    """What one encoder replica publishes. `took` on its event loop, `pass_ended` on the tower's thread."""

    def __init__(self) -> None:
        self._meter = WorkMeter()
        self._tokens_per_item = 0.0

    def took(self, reply: EncodeReply) -> None:
        """Tickets were given."""
        for ticket in reply.tickets:
            if ticket is not None:
                known = self._tokens_per_item or ticket.num_tokens
                self._tokens_per_item = known + _SMOOTHING * (ticket.num_tokens - known)

    def pass_ended(self, times: BatchTimes) -> None:
        """A pass was computed; the decoding of its media belongs to it."""
        self._meter.add(times.num_tokens, times.begun, times.finished)

    def read(self, stats: EncoderStats) -> dict[str, float]:
        """The signals at this moment."""
        done, busy_s = self._meter.totals()
        return {QUEUED_TOKENS: stats.num_pending * self._tokens_per_item, DONE_TOKENS: float(done), BUSY_S: busy_s}


class EngineSignals:
    """What one replica of an engine publishes; an `EngineObserver` that tells the next one as well."""

    def __init__(self, then: EngineObserver) -> None:
        self._meter = WorkMeter()
        self._then = then

    def request_ended(self, request: EndedRequest) -> None:
        if request.num_prompt_tokens and request.scheduled and request.first_token:
            self._meter.add(request.num_prompt_tokens, request.scheduled, request.first_token)
        self._then.request_ended(request)

    def step_ended(self, num_running: int) -> None:
        self._then.step_ended(num_running)

    def read(self, stats: LLMStats) -> dict[str, float]:
        """The signals at this moment."""
        done, busy_s = self._meter.totals()
        prompts = stats.num_unanswered_prompts
        # Which prompts the engine has put off it does not say; they are taken for prompts of middle length.
        ready = 1 - min(stats.num_deferred, prompts) / prompts if prompts else 0.0
        return {
            QUEUED_TOKENS: stats.num_unanswered_tokens * ready,
            DONE_TOKENS: float(done),
            BUSY_S: busy_s,
            SEQUENCES: float(stats.num_running),
            KV_CACHE_USE: stats.kv_cache_use,
            TOKEN_GAPS: float(stats.num_token_gaps),
            TOKEN_GAPS_S: stats.token_gaps_s,
        }
