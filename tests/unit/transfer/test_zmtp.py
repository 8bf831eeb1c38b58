"""Guards: a peer's bytes read otherwise than they were meant, by whichever pieces they come in, or without a bound."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer import ProtocolError
from transfer.zmtp import GREETING, PING, READY, Place, ZmtpReader, command, frame

MAX_FIRST, MAX_SECOND = 1000, 5000


def anywhere(first: memoryview, num_bytes: int) -> None:
    return None


def reader(place: Place = anywhere) -> ZmtpReader:
    return ZmtpReader(place, MAX_FIRST, MAX_SECOND)


def feed(target: ZmtpReader, data: bytes, cut: Callable[[int], int] = lambda left: left) -> list[list[bytes]]:
    """As a socket would: no more than is wanted at a time, and no more than `cut` allows."""
    rest, unfilled, messages = memoryview(data), target.wanted, []
    while rest:
        num_bytes = min(cut(len(rest)), unfilled.nbytes, len(rest))
        unfilled[:num_bytes] = rest[:num_bytes]
        rest, unfilled = rest[num_bytes:], unfilled[num_bytes:]
        if not unfilled:
            target.advance()
            unfilled = target.wanted
            while (message := target.next_message()) is not None:
                messages.append([bytes(part) for part in message])
    assert unfilled.nbytes == target.wanted.nbytes, "the bytes ended within a piece"
    return messages


def wire(message: list[bytes]) -> bytes:
    """The frames of one message; all but the last say that another follows."""
    parts = [bytearray(frame(part)) for part in message]
    for part in parts[:-1]:
        part[0] |= 1
    return b"".join(parts)


sizes = st.sampled_from([0, 1, 255, 256, 257, 1000])
bodies = st.builds(lambda size, byte: bytes([byte]) * size, sizes, st.integers(0, 255))


@given(st.lists(st.lists(bodies, min_size=1, max_size=2), max_size=6), st.randoms(use_true_random=False))
def test_messages_arrive_as_they_were_sent_in_whatever_pieces(
    messages: list[list[bytes]], numbers: random.Random
) -> None:
    sent = b"".join(wire(message) for message in messages)
    assert feed(reader(), GREETING + READY + sent, lambda left: numbers.randint(1, left)) == messages


def test_the_second_frame_is_written_where_it_is_placed() -> None:
    memory = bytearray(10)
    seen = []

    def place(first: memoryview, num_bytes: int) -> tuple[int, memoryview]:
        seen.append((bytes(first), num_bytes))
        return 7, memoryview(memory)[2 : 2 + num_bytes]

    target = reader(place)
    feed(target, GREETING + READY + wire([b"header", b"datas"])[:-5])
    assert seen == [(b"header", 5)]
    assert target.placed_for == 7
    feed(target, b"datas" + wire([b"alone"]))
    assert target.placed_for is None
    assert memory == b"\0\0datas\0\0\0"


def test_the_handshake_and_pings_are_answered() -> None:
    target = reader()
    feed(target, GREETING)
    assert list(target.answers) == [READY]
    assert not target.ready
    feed(target, READY + PING + command(b"PING", b"\0\0context"))
    assert target.ready
    assert list(target.answers) == [READY, command(b"PONG"), command(b"PONG", b"context")]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\n".ljust(64),
        GREETING.replace(b"NULL\0", b"CURVE"),
        GREETING[:10] + b"\1" + GREETING[11:],
        GREETING + wire([b"before the handshake"]),
        GREETING + command(b"ERROR", b"\x02no"),
        GREETING + READY + wire([b"1", b"2", b"3"]),
        GREETING + READY + wire([bytes(MAX_FIRST + 1)])[:9],
        GREETING + READY + wire([b"1", bytes(MAX_SECOND + 1)])[:12],
        GREETING + READY + b"\x02" + b"\xff" * 8,
        GREETING + READY + b"\x06" + (513).to_bytes(8, "big"),
        GREETING + READY + b"\x08\x01a",
        GREETING + READY + b"\x05\x01a",
        GREETING + READY + b"\x04\x00",
    ],
)
def test_what_no_peer_may_send_is_refused_before_memory_is_taken(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        feed(reader(), data)
