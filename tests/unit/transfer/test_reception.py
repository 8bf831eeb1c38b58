"""Guards: an encoder's reply that does not fit the ticket and would leave rows unwritten or written twice."""

import zlib
from concurrent.futures import Future

import pytest
import torch

from transfer.channels.zmq_channel import ZmqReceiveChannel
from transfer.errors import Busy, EmbeddingCorrupt, EncoderLost, ProtocolError
from transfer.messages import Chunk, EmbeddingRef, FetchReply, Segment, Status
from transfer.reception import Fetch

A, B = "tcp://127.0.0.1:1", "tcp://127.0.0.1:2"
ROW_BYTES = 8
CHANNELS = {"zmq": ZmqReceiveChannel()}


def fetch(*endpoints: str) -> Fetch:
    ref = EmbeddingRef("key", "id", endpoints, 4, 2, "float32", 32, "print")
    return Fetch(1, ref, 0.0, Future())


def ok(*segments: Segment, checksum: int | None = None) -> FetchReply:
    return FetchReply(1, "id", Status.OK, "zmq", segments, (4, 2), "float32", checksum)


def rows(start: int, end: int) -> Segment:
    return Segment(start, end, (end - start) * ROW_BYTES)


WHOLE = torch.arange(8, dtype=torch.float32).view(4, 2)
BYTES = memoryview(WHOLE.numpy().tobytes())


def test_two_ranks_fill_one_tensor_in_any_order() -> None:
    pending = fetch(A, B)
    assert pending.take_reply(B, ok(rows(3, 4)), CHANNELS)
    assert pending.take_chunk(B, Chunk(1, 24), BYTES[24:32])
    assert pending.result() is None
    assert pending.take_reply(A, ok(rows(0, 3)), CHANNELS)
    assert pending.take_chunk(A, Chunk(1, 0), BYTES[:16])
    assert pending.result() is None
    assert pending.take_chunk(A, Chunk(1, 16), BYTES[16:24])
    result = pending.result()
    assert result is not None and torch.equal(result, WHOLE)


def test_a_rank_without_rows_counts_as_answered() -> None:
    pending = fetch(A, B)
    assert pending.take_reply(B, ok(), CHANNELS)
    assert pending.take_reply(A, ok(rows(0, 2), rows(2, 4)), CHANNELS)
    assert pending.take_chunk(A, Chunk(1, 0), BYTES[:16])
    assert pending.take_chunk(A, Chunk(1, 16), BYTES[16:])
    result = pending.result()
    assert result is not None and torch.equal(result, WHOLE)


@pytest.mark.parametrize(
    "reply",
    [
        FetchReply(1, "id", Status.OK, "zmq", (rows(0, 4),), (4, 3), "float32"),
        FetchReply(1, "id", Status.OK, "zmq", (rows(0, 4),), (4, 2), "bfloat16"),
        FetchReply(1, "id", Status.OK, "hccl", (rows(0, 4),), (4, 2), "float32"),
        ok(Segment(0, 4, 33)),
        ok(Segment(0, 5, 40)),
        ok(Segment(2, 2, 0)),
        ok(rows(0, 3), rows(2, 4)),
        ok(rows(0, 4), rows(0, 4)),
    ],
)
def test_replies_that_do_not_fit_the_ticket_are_refused(reply: FetchReply) -> None:
    with pytest.raises(ProtocolError):
        fetch(A).take_reply(A, reply, CHANNELS)


def test_ranks_that_overlap_are_refused() -> None:
    pending = fetch(A, B)
    pending.take_reply(A, ok(rows(0, 3)), CHANNELS)
    with pytest.raises(ProtocolError, match="overlaps"):
        pending.take_reply(B, ok(rows(2, 4)), CHANNELS)


def test_missing_rows_are_noticed_when_all_have_answered() -> None:
    pending = fetch(A)
    pending.take_reply(A, ok(rows(0, 3)), CHANNELS)
    pending.take_chunk(A, Chunk(1, 0), BYTES[:24])
    with pytest.raises(ProtocolError, match="3 of 4 rows"):
        pending.result()


@pytest.mark.parametrize(("offset", "size"), [(8, 8), (0, 40), (0, 0)])
def test_chunks_out_of_order_or_range_are_refused(offset: int, size: int) -> None:
    pending = fetch(A)
    pending.take_reply(A, ok(rows(0, 4)), CHANNELS)
    with pytest.raises(ProtocolError, match="chunk"):
        pending.take_chunk(A, Chunk(1, offset), memoryview(bytes(size)))


def test_duplicates_and_strays_are_dropped() -> None:
    pending = fetch(A)
    assert not pending.take_chunk(A, Chunk(1, 0), BYTES)
    assert not pending.take_reply(B, ok(rows(0, 4)), CHANNELS)
    assert not pending.take_reply(A, FetchReply(1, "another", Status.OK), CHANNELS)
    assert pending.take_reply(A, ok(rows(0, 4)), CHANNELS)
    assert not pending.take_reply(A, FetchReply(1, "id", Status.EXPIRED), CHANNELS)
    assert pending.take_chunk(A, Chunk(1, 0), BYTES)
    assert not pending.take_chunk(A, Chunk(1, 0), BYTES)
    result = pending.result()
    assert result is not None and torch.equal(result, WHOLE)


def test_a_checksum_that_differs_is_noticed() -> None:
    for checksum, raises in [(zlib.crc32(BYTES), False), (zlib.crc32(BYTES) ^ 1, True)]:
        pending = fetch(A)
        pending.take_reply(A, ok(rows(0, 1), rows(1, 4), checksum=checksum), CHANNELS)
        pending.take_chunk(A, Chunk(1, 0), BYTES[:8])
        if raises:
            with pytest.raises(EmbeddingCorrupt):
                pending.take_chunk(A, Chunk(1, 8), BYTES[8:])
        else:
            assert pending.take_chunk(A, Chunk(1, 8), BYTES[8:])


def test_refusals_become_typed_errors() -> None:
    with pytest.raises(Busy):
        fetch(A).take_reply(A, FetchReply(1, "id", Status.BUSY), CHANNELS)
    with pytest.raises(EncoderLost, match="rank 3"):
        reply = FetchReply(1, "id", Status.NOT_FOUND, error_code="encoder_lost", error_message="rank 3")
        fetch(A).take_reply(A, reply, CHANNELS)
