"""Guards: one frame of ten thousand that ends the control thread, makes the server grow, or changes what it holds."""

import os
import random
import time
from pathlib import Path
from typing import Any

import msgpack
import torch
import zmq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from transfer import FetchRequest, Release, Renew, ServerSettings, encode
from transfer.codec import PROTOCOL_VERSION

NUM_EXAMPLES = 100
MESSAGES_PER_EXAMPLE = 100
WAIT_S = 60.0
MAX_GROWTH_BYTES = 32 * 2**20
TENSOR = torch.arange(24, dtype=torch.float32).view(6, 4)

_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=40)
    | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_names = st.sampled_from(["FetchRequest", "Release", "Renew", "FetchReply", "Chunk", "EncodeRequest", "Nothing", ""])
_fields = st.sampled_from(["transfer_id", "fetch_id", "item_key", "channels", "timeout_s", "host_id", "bell", "other"])
_envelopes = st.one_of(
    _values,
    st.tuples(st.integers(0, 4) | _values, _names | _values, st.dictionaries(_fields, _values, max_size=8) | _values),
)
_valid = st.sampled_from(
    [
        encode(FetchRequest(1, "f" * 32, "key", "print", "host", ("zmq", "shm"), 1.0, "00f1")),
        encode(Release("f" * 32)),
        encode(Renew("f" * 32)),
        msgpack.packb([PROTOCOL_VERSION, "FetchRequest", {"unheard": "of"}]),
    ]
)


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    """A good frame with some bytes changed, left out or added."""
    frame = bytearray(draw(_valid))
    for place, byte, how in draw(
        st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255), st.integers(0, 2)), max_size=4)
    ):
        place %= len(frame) + 1
        frame[place : place + (how > 0)] = bytes([byte]) * (how < 2)
    return bytes(frame)


_frames = st.one_of(st.binary(max_size=200), _envelopes.map(msgpack.packb), _damaged())
_messages = st.one_of(_frames.map(lambda frame: [frame]), st.lists(_frames, min_size=2, max_size=3))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


def test_ten_thousand_fuzzed_messages_change_nothing(bench: Any) -> None:
    server, client = (
        bench.server(ServerSettings(lease_s=600.0), channels=["shm", "zmq"]),
        bench.client(channels=["shm", "zmq"]),
    )
    ref = bench.offer(server, TENSOR)
    num_sent = 0
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.setsockopt(zmq.SNDHWM, 0)
        peer.connect(server.endpoint)

        @settings(
            max_examples=NUM_EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(_messages, min_size=1, max_size=8), st.randoms(use_true_random=False))
        def send(messages: list[list[bytes]], chance: random.Random) -> None:
            nonlocal num_sent
            for number in range(MESSAGES_PER_EXAMPLE):
                frames = list(messages[number % len(messages)])
                if number >= len(messages):  # the same again, shuffled and with a byte changed
                    chance.shuffle(frames)
                    frame = bytearray(frames[0] or b"\0")
                    frame[chance.randrange(len(frame))] = chance.randrange(256)
                    frames[0] = bytes(frame)
                peer.send_multipart(frames)
                num_sent += 1
            while peer.poll(0):  # answers to what happened to be a question
                peer.recv_multipart()

        before = 0
        for _ in range(2):  # the second time must need no more memory than the first
            send()
            # Messages of one peer are handled in order: this answer shows that all before it were.
            peer.send(encode(FetchRequest(7, "0" * 32, "key", "model@revision", "host", ("zmq",), 5.0)))
            end = time.monotonic() + WAIT_S
            while b"not known here" not in b"".join(peer.recv_multipart() if peer.poll(1000) else []):
                assert time.monotonic() < end, "the control thread does not answer"
            if not before:
                before = _resident_bytes()
    assert num_sent >= 20_000
    assert _resident_bytes() - before < MAX_GROWTH_BYTES
    stats = server.stats()
    assert stats.num_malformed > num_sent // 2
    assert (stats.num_leases, stats.num_parked) == (1, 0)
    assert torch.equal(client.fetch(ref, WAIT_S).result(WAIT_S), TENSOR)
