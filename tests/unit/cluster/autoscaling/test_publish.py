"""What replicas publish: work counted once, what waits in the policies' unit, and nothing for what cannot begin yet."""

from __future__ import annotations

from dataclasses import replace

from cluster.autoscaling.publish import EncoderSignals, EngineSignals
from cluster.autoscaling.signals import (
    BACKLOG_NAMES,
    BUSY_S,
    DECODE_NAMES,
    DONE_TOKENS,
    KV_CACHE_USE,
    QUEUED_TOKENS,
)
from cluster.autoscaling.work_meter import WorkMeter
from encoder_workers.batcher import BatchTimes
from encoder_workers.stats import EncoderStats
from llm_workers.observer import EndedRequest, NoObserver
from llm_workers.worker import LLMStats
from transfer import EncodeReply, EncodeTicket, ItemFailure, ServerStats

_TICKET = EncodeTicket("k", "image", 64, 8, "float32", "plain", (), "t", ("tcp://x:1",), 64 * 8 * 4, "f")
_SERVER = ServerStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
_ENCODER = EncoderStats(1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, _SERVER, 3, 0.0, 0.0)
_ENGINE = LLMStats(
    process_id=1,
    num_running=4,
    num_waiting=3,
    num_deferred=0,
    num_finished=0,
    num_failed=0,
    num_cancelled=0,
    num_prompt_tokens=0,
    num_generated_tokens=0,
    embedding_bytes=0,
    kv_cache_use=0.5,
    kv_cache_tokens=4096,
    num_unanswered_prompts=4,
    num_unanswered_tokens=400,
    num_token_gaps=7,
    token_gaps_s=0.7,
)


def _ended(scheduled: float, first_token: float, num_prompt_tokens: int) -> EndedRequest:
    return EndedRequest("r", None, "finished", 0.5, 0.6, scheduled, first_token, 9.0, 9.0, num_prompt_tokens, 5, 0)


def test_time_that_pieces_share_counts_once() -> None:
    meter = WorkMeter()
    meter.add(10, 1.0, 3.0)
    meter.add(20, 2.0, 4.0)  # half of it was busy already
    meter.add(5, 2.5, 3.5)  # all of it
    meter.add(1, 6.0, 6.5)
    assert meter.totals() == (36, 3.5)


def test_an_encoder_tells_its_items_in_tokens() -> None:
    signals = EncoderSignals()
    assert signals.read(_ENCODER)[QUEUED_TOKENS] == 0.0
    signals.took(EncodeReply("r", (_TICKET, None, _TICKET), (ItemFailure(1, "bad_media", "x"),)))
    signals.pass_ended(BatchTimes(256, 64, 1, begun=1.0, pass_begun=1.5, finished=2.0, items=()))
    assert signals.read(_ENCODER) == {QUEUED_TOKENS: 3 * 64.0, DONE_TOKENS: 64.0, BUSY_S: 1.0}
    for _ in range(200):
        signals.took(EncodeReply("r", (replace(_TICKET, num_tokens=128, expected_bytes=128 * 8 * 4),), ()))
    assert 3 * 127 < signals.read(_ENCODER)[QUEUED_TOKENS] <= 3 * 128


def test_an_engine_counts_computed_prompts_and_passes_everything_on() -> None:
    told: list[EndedRequest] = []

    class Next(NoObserver):
        def request_ended(self, request: EndedRequest) -> None:
            told.append(request)

    signals = EngineSignals(Next())
    ends = [_ended(1.0, 2.0, 100), _ended(0.0, 0.0, 100), _ended(3.0, 4.0, 0)]
    for end in ends:
        signals.request_ended(end)
    assert told == ends
    published = signals.read(_ENGINE)
    assert (published[DONE_TOKENS], published[BUSY_S]) == (100.0, 1.0)
    assert published[KV_CACHE_USE] == 0.5
    assert {*published} == {*BACKLOG_NAMES, *DECODE_NAMES}


def test_prompts_without_their_embeddings_are_no_backlog() -> None:
    """A slow encoder must not be answered with prefill engines."""
    signals = EngineSignals(NoObserver())
    assert signals.read(_ENGINE)[QUEUED_TOKENS] == 400.0
    assert signals.read(replace(_ENGINE, num_deferred=3))[QUEUED_TOKENS] == 100.0
    assert signals.read(replace(_ENGINE, num_deferred=9))[QUEUED_TOKENS] == 0.0
