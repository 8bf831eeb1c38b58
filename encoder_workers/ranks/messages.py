"""What an encoder and its rank processes say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgpack

from encoder_workers.ranks.rates import Rates
from transfer.messages import Modality
from transfer.plain import from_plain, to_plain

RowType = Literal["uint8", "float32"]


@dataclass(frozen=True)
class LaunchRank:
    """First message to a rank: what to load and whom to meet.

    Attributes:
        ops: a backend's name, or (operator, backend) pairs.
        rendezvous: file in which the ranks find each other.
        timeout_s: longest start, and longest exchange between ranks.
    """

    rank: int
    num_ranks: int
    model: str
    device: str
    dtype: str
    ops: str | tuple[tuple[str, str], ...]
    num_threads: int
    rendezvous: str
    timeout_s: float


@dataclass(frozen=True)
class PassItem:
    """One item of a pass: its inputs and its place for the tokens, in the two buffers that come with the message."""

    shape: tuple[int, ...]
    dtype: RowType
    input_offset: int
    output_offset: int
    grid: tuple[int, int, int]
    modality: Modality
    num_tokens: int
    num_patches: int


@dataclass(frozen=True)
class RunPass:
    """Compute these items together with the other ranks; every rank gets the same message."""

    items: tuple[PassItem, ...]


@dataclass(frozen=True)
class RankReady:
    """The tower is loaded and its operators are right.

    Attributes:
        row_bytes: device memory that a row takes in a pass.
        free_bytes: of the rank's device, behind its weights.
        rows_per_pair: what a pair of rows that attend to each other costs, in rows.
    """

    width: int
    layout: str
    rates: Rates
    row_bytes: int
    free_bytes: int
    rows_per_pair: float


@dataclass(frozen=True)
class PassDone:
    """This rank's tokens are in the output buffer."""

    num_rows: int


@dataclass(frozen=True)
class RankFailed:
    """The rank ends because of this.

    Attributes:
        error: the exception's type.
    """

    error: str
    message: str


ToRank = LaunchRank | RunPass
FromRank = RankReady | PassDone | RankFailed
RankMessage = ToRank | FromRank
_TYPES: dict[str, type[RankMessage]] = {
    message_type.__name__: message_type for message_type in (LaunchRank, RunPass, RankReady, PassDone, RankFailed)
}


def encode(message: RankMessage) -> bytes:
    """[type, {field: value}] as MessagePack."""
    packed: bytes = msgpack.packb([type(message).__name__, to_plain(message)])
    return packed


def decode(data: bytes) -> RankMessage:
    """The message that `encode` made `data` of. Raises ProtocolError for a field that does not fit."""
    name, fields = msgpack.unpackb(data)
    return from_plain(_TYPES[name], fields)
