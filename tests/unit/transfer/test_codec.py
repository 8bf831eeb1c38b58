"""Guards: a peer's bytes that crash, coerce, over-allocate or pass for a message they are not."""

import dataclasses

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.codec import MAX_CONTROL_BYTES, PROTOCOL_VERSION, Message, decode, encode
from transfer.errors import ProtocolError, VersionMismatch
from transfer.messages import (
    Chunk,
    EncodeReply,
    EncodeRequest,
    EncodeTicket,
    FailureReport,
    FetchReply,
    FetchRequest,
    ItemFailure,
    MediaItem,
    Metadata,
    Release,
    Renew,
    Segment,
    Status,
)

texts = st.text(max_size=20)
counts = st.integers(0, 2**62)
sizes = st.integers(1, 1000)
seconds = st.floats(min_value=1e-6, max_value=1e6)
options = st.lists(
    st.tuples(texts, st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(-1e9, 1e9) | texts), max_size=3
).map(tuple)
items = st.builds(MediaItem, st.sampled_from(["image", "video", "audio"]), data=st.binary(max_size=50)) | st.builds(
    MediaItem, st.just("image"), url=texts
)
metadata = st.lists(st.integers(-9, 9) | st.floats(-9, 9), max_size=4).map(lambda values: Metadata.of("grid", values))


ids = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=255)
ports = st.integers(1, 65535)


@st.composite
def tickets(draw: st.DrawFn) -> EncodeTicket:
    num_tokens, width = draw(sizes), draw(sizes)
    dtype, element_bytes = draw(st.sampled_from([("bfloat16", 2), ("float32", 4)]))
    return EncodeTicket(
        item_key=draw(ids),
        modality=draw(st.sampled_from(["image", "video", "audio"])),
        num_tokens=num_tokens,
        width=width,
        dtype=dtype,
        layout=draw(texts),
        metadata=tuple(draw(st.lists(metadata, max_size=2))),
        transfer_id=draw(ids),
        endpoints=(f"tcp://{draw(ids)}:{draw(ports)}",),
        expected_bytes=num_tokens * width * element_bytes,
        fingerprint=draw(texts),
    )


messages = st.one_of(
    st.builds(EncodeRequest, texts, st.lists(items, max_size=3).map(tuple), options, texts, seconds),
    tickets(),
    tickets().map(EncodeTicket.ref),
    tickets().map(lambda ticket: EncodeReply("r", (ticket, None), (ItemFailure(1, "bad_media", "m"),))),
    st.builds(FetchRequest, counts, texts, texts, texts, texts, st.lists(texts, max_size=3).map(tuple), seconds),
    st.builds(
        FetchReply,
        fetch_id=counts,
        transfer_id=texts,
        status=st.sampled_from(Status),
        segments=st.just((Segment(0, 2, 8), Segment(2, 4, 8, "region", 64))),
        shape=st.just((4, 2)),
        checksum=st.none() | st.integers(0, 2**32 - 1),
    ),
    st.builds(Chunk, counts, counts),
    st.builds(FailureReport, texts, texts, texts),
    st.builds(Release, texts),
    st.builds(Renew, texts),
)

REQUEST = FetchRequest(7, "id", "key", "print", "host", ("shm", "zmq"), 1.5)


def envelope(message: Message) -> list[object]:
    unpacked: list[object] = msgpack.unpackb(encode(message))
    return unpacked


def fields(message: Message) -> dict[str, object]:
    tag_fields = envelope(message)[2]
    assert isinstance(tag_fields, dict)
    return tag_fields


def repack(**changes: object) -> bytes:
    packed: bytes = msgpack.packb([PROTOCOL_VERSION, "FetchRequest", fields(REQUEST) | changes])
    return packed


@given(messages)
def test_round_trip_is_exact(message: Message) -> None:
    copy = decode(encode(message), type(message))
    assert copy == message
    assert repr(copy) == repr(message)  # 1 == 1.0 == True, but they do not print alike


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_and_nothing_else_happens(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(frame, FetchRequest, Release)


@given(messages, st.data())
def test_damaged_frames_never_raise_anything_untyped(message: Message, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(frame), type(message))
    except ProtocolError:
        return


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fetch_id", True),
        ("fetch_id", "7"),
        ("fetch_id", 7.0),
        ("fetch_id", None),
        ("transfer_id", b"id"),
        ("transfer_id", 5),
        ("timeout_s", "1"),
        ("timeout_s", True),
        ("timeout_s", float("nan")),
        ("timeout_s", 0),
        ("timeout_s", -1.0),
        ("channels", "zmq"),
        ("channels", [1]),
        ("channels", {"zmq": 1}),
    ],
)
def test_wrong_types_and_refused_values_name_the_field(name: str, value: object) -> None:
    with pytest.raises(ProtocolError, match=name):
        decode(repack(**{name: value}), FetchRequest)


def test_a_whole_number_is_a_valid_float_and_becomes_one() -> None:
    timeout_s = decode(repack(timeout_s=2), FetchRequest).timeout_s
    assert type(timeout_s) is float and timeout_s == 2.0


def test_unknown_and_missing_fields_are_refused() -> None:
    with pytest.raises(ProtocolError, match="surprise"):
        decode(repack(surprise=1), FetchRequest)
    for field in dataclasses.fields(FetchRequest):
        rest = {name: value for name, value in fields(REQUEST).items() if name != field.name}
        with pytest.raises(ProtocolError, match=field.name):
            decode(msgpack.packb([PROTOCOL_VERSION, "FetchRequest", rest]), FetchRequest)


def test_a_field_given_twice_is_refused() -> None:
    twice = b"\x93\x01\xa7Release\x82" + (msgpack.packb("transfer_id") + msgpack.packb("x")) * 2
    with pytest.raises(ProtocolError, match="twice"):
        decode(twice, Release)


def test_other_versions_are_told_apart_from_rubbish() -> None:
    packed = msgpack.packb([PROTOCOL_VERSION + 1, "Anything", {"new": 1}, "more"])
    with pytest.raises(VersionMismatch, match=str(PROTOCOL_VERSION + 1)):
        decode(packed, FetchRequest)
    with pytest.raises(ProtocolError) as caught:
        decode(msgpack.packb([True, "Release", {"transfer_id": "x"}]), Release)
    assert not isinstance(caught.value, VersionMismatch)


def test_only_expected_messages_pass() -> None:
    with pytest.raises(ProtocolError, match="Release"):
        decode(encode(Release("x")), FetchRequest)
    with pytest.raises(ProtocolError, match="unexpected"):
        decode(msgpack.packb([PROTOCOL_VERSION, "EmbeddingServer", {}]), FetchRequest)
    assert decode(encode(Release("x")), FetchRequest, Release) == Release("x")


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        encode(REQUEST) + b"\x00",
        encode(REQUEST)[:-1],
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 60_000,
        b"\xd6\xff\x00\x00\x00\x00",
        msgpack.packb([PROTOCOL_VERSION, "Release", {"transfer_id": msgpack.ExtType(5, b"x")}]),
        msgpack.packb([PROTOCOL_VERSION, "Release", {1: "x"}]),
        msgpack.packb([PROTOCOL_VERSION, "Release", ["x"]]),
        msgpack.packb({"transfer_id": "x"}),
        b"\x93\x01\xa7Release\x81\xabtransfer_id\xa2\xff\xfe",
    ],
    ids=range(15),
)
def test_hostile_frames_are_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(frame, FetchRequest, Release)


def test_frames_over_the_limit_are_refused_before_unpacking() -> None:
    with pytest.raises(ProtocolError, match="over the limit"):
        decode(encode(Release("x" * MAX_CONTROL_BYTES)), Release)
    long = Release("x" * MAX_CONTROL_BYTES)
    assert decode(encode(long), Release, max_bytes=2 * MAX_CONTROL_BYTES) == long


def test_a_status_must_be_known() -> None:
    reply = fields(FetchReply(1, "id", Status.OK))
    for status in ("great", 1, None, ["ok"]):
        with pytest.raises(ProtocolError, match="status"):
            decode(msgpack.packb([PROTOCOL_VERSION, "FetchReply", reply | {"status": status}]), FetchReply)


def test_an_integer_too_wide_for_the_wire_is_refused_when_encoding() -> None:
    with pytest.raises(ProtocolError, match="Chunk"):
        encode(Chunk(2**70, 0))
