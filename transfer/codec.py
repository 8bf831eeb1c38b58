"""Messages to MessagePack bytes and strictly back: `[protocol version, type tag, {field: value}]`.

No pickle and no extension types; the length of a frame, and all that it may hold, is bounded before it is unpacked.
How many frames a message has is not bounded before it has ended: libzmq limits each of them (MAXMSGSIZE), and gathers
them until the last one, so that a peer that never ends a message takes memory for as long as its connection lasts. With
a cluster key (see `curve`) only peers that have it can do so.
"""

from typing import Any, TypeVar, cast, overload

import msgpack

from transfer.errors import ProtocolError, VersionMismatch
from transfer.messages import (
    Chunk,
    EmbeddingRef,
    EncodeReply,
    EncodeRequest,
    EncodeTicket,
    FailureReport,
    FetchReply,
    FetchRequest,
    Release,
    Renew,
)
from transfer.plain import from_plain, to_plain

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
Message = (
    EncodeRequest
    | EncodeReply
    | EncodeTicket
    | EmbeddingRef
    | FetchRequest
    | FetchReply
    | Chunk
    | Release
    | Renew
    | FailureReport
)

PROTOCOL_VERSION = 4
"""Raised by one whenever a message or its frames change."""
MAX_CONTROL_BYTES = 64 * 1024
"""Longest control frame an embedding server or client takes."""
MAX_CONTAINER_LEN = 65_536
"""Most entries of one list or map."""

_MESSAGE_TYPES: dict[str, type[Message]] = {
    message_type.__name__: message_type
    for message_type in (
        EncodeRequest,
        EncodeReply,
        EncodeTicket,
        EmbeddingRef,
        FetchRequest,
        FetchReply,
        Chunk,
        Release,
        Renew,
        FailureReport,
    )
}


def encode(message: Message) -> bytes:
    """One frame. Raises ProtocolError when a number does not fit MessagePack's 64 bits."""
    try:
        packed: bytes = msgpack.packb([PROTOCOL_VERSION, type(message).__name__, to_plain(message)])
    except (OverflowError, ValueError) as error:
        raise ProtocolError(f"cannot encode {type(message).__name__}: {error}") from error
    return packed


@overload
def decode(frame: bytes | memoryview, first: type[A], *, max_bytes: int = ...) -> A: ...


@overload
def decode(frame: bytes | memoryview, first: type[A], second: type[B], *, max_bytes: int = ...) -> A | B: ...


@overload
def decode(
    frame: bytes | memoryview, first: type[A], second: type[B], third: type[C], *, max_bytes: int = ...
) -> A | B | C: ...


def decode(
    frame: bytes | memoryview,
    first: type[A],
    second: type[B] | None = None,
    third: type[C] | None = None,
    *,
    max_bytes: int = MAX_CONTROL_BYTES,
) -> A | B | C:
    """The message in `frame`, which must be of type `first` or, where given, `second` or `third`.

    Raises VersionMismatch for another protocol version, ProtocolError for anything else that is not exactly such a
    message: over `max_bytes`, not MessagePack, wrong tag, unknown or missing fields, wrong types, refused values.
    """
    envelope = _unpack(frame, max_bytes)
    if type(envelope) is not list or not envelope or type(envelope[0]) is not int:
        raise ProtocolError("not a message envelope")
    if envelope[0] != PROTOCOL_VERSION:
        raise VersionMismatch(f"peer speaks protocol version {envelope[0]}, this end {PROTOCOL_VERSION}")
    if len(envelope) != 3 or type(envelope[1]) is not str:
        raise ProtocolError("not a message envelope")
    message_type = _MESSAGE_TYPES.get(envelope[1])
    expected: tuple[object, ...] = (first, second, third)
    if message_type is None or message_type not in expected:
        raise ProtocolError(f"unexpected message {envelope[1]!r}")
    return cast(A | B | C, from_plain(message_type, envelope[2]))


def _unpack(frame: bytes | memoryview, max_bytes: int) -> object:
    num_bytes = memoryview(frame).nbytes
    if num_bytes > max_bytes:
        raise ProtocolError(f"frame of {num_bytes} bytes is over the limit of {max_bytes}")
    try:
        return msgpack.unpackb(
            frame,
            object_pairs_hook=_unique_pairs,
            ext_hook=_refuse_extension,
            max_str_len=max_bytes,
            max_bin_len=max_bytes,
            max_array_len=MAX_CONTAINER_LEN,
            max_map_len=MAX_CONTAINER_LEN,
            max_ext_len=64,
        )
    except ProtocolError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError(f"not MessagePack: {type(error).__name__}: {error}") from error


def _unique_pairs(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ProtocolError("a map names a field twice")
    return unique


def _refuse_extension(code: int, data: bytes) -> object:
    raise ProtocolError(f"extension type {code} is not allowed")
