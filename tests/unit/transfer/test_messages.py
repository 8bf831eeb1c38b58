"""Guards: messages that cannot be right, a ref that changes on its way through JSON, metadata that loses its shape."""

import dataclasses
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.errors import BadMedia, ProtocolError
from transfer.messages import (
    EmbeddingRef,
    EncodeReply,
    EncodeRequest,
    EncodeTicket,
    ItemFailure,
    MediaItem,
    Metadata,
    Segment,
)

REF = EmbeddingRef("key", "id", ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2"), 3, 4, "bfloat16", 24, "print")
TICKET = EncodeTicket(
    "key", "image", 3, 4, "bfloat16", "main", (), "id", ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2"), 24, "print"
)


@pytest.mark.parametrize(("data", "url"), [(None, None), (b"x", "http://x")])
def test_a_media_item_has_exactly_one_source(data: bytes | None, url: str | None) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        MediaItem("image", data, url)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_request_without_time_is_refused(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        EncodeRequest("r", (), (), "", timeout_s)


def test_a_ref_survives_json_unchanged() -> None:
    assert EmbeddingRef.from_dict(json.loads(json.dumps(REF.to_dict()))) == REF
    assert TICKET.ref() == REF


@pytest.mark.parametrize(
    "change",
    [
        {"expected_bytes": 25},
        {"dtype": "int4"},
        {"num_tokens": 0, "expected_bytes": 0},
        {"endpoints": []},
        {"endpoints": ["tcp://a:1", "tcp://a:1"]},
        {"num_tokens": "3"},
        {"num_tokens": True},
        {"surprise": 1},
    ],
)
def test_a_ref_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        EmbeddingRef.from_dict(REF.to_dict() | change)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(EmbeddingRef)])
def test_a_ref_with_a_missing_field_is_refused(name: str) -> None:
    incomplete = REF.to_dict()
    del incomplete[name]
    with pytest.raises(ProtocolError, match=name):
        EmbeddingRef.from_dict(incomplete)


def test_a_reply_accounts_for_every_item() -> None:
    failure = ItemFailure(1, BadMedia.code, "not an image")
    assert isinstance(EncodeReply("r", (TICKET, None), (failure,)).failures[0].to_error(), BadMedia)
    for tickets, failures in [((TICKET, None), ()), ((TICKET,), (failure,)), ((TICKET, None), (failure, failure))]:
        with pytest.raises(ValueError, match="either a ticket or one failure"):
            EncodeReply("r", tickets, failures)


def test_messages_cross_ray_by_pickle() -> None:
    reply = EncodeReply("r", (TICKET, None), (ItemFailure(1, "bad_media", "no"),))
    assert pickle.loads(pickle.dumps(reply)) == reply  # noqa: S301


def test_a_segment_runs_forward() -> None:
    for arguments in [(2, 1, 0), (-1, 1, 0), (0, 1, -1)]:
        with pytest.raises(ValueError, match="segment"):
            Segment(*arguments)


@st.composite
def rectangular(draw: st.DrawFn) -> object:
    def build(shape: list[int]) -> object:
        if not shape:
            return draw(st.integers(-(2**31), 2**31) | st.floats(allow_nan=False, allow_infinity=False))
        return [build(shape[1:]) for _ in range(shape[0])]

    return build(draw(st.lists(st.integers(1, 3), max_size=3)))


@given(rectangular())
def test_metadata_keeps_shape_and_values(nested: object) -> None:
    assert Metadata.of("grid", nested).nested() == nested  # type: ignore[arg-type]


def test_metadata_refuses_ragged_lists_and_wrong_shapes() -> None:
    with pytest.raises(ValueError, match="rectangular"):
        Metadata.of("grid", [[1, 2], [3]])
    with pytest.raises(ValueError, match="does not fit"):
        Metadata("grid", (2, 2), (1, 2, 3))
    assert Metadata.of("image_grid_thw", [1, 14, 28]) == Metadata("image_grid_thw", (3,), (1, 14, 28))
    assert Metadata.of("none", []).nested() == []
