"""The messages that cross between ingress, encoder and prefill: every type of the wire, and nothing else.

Shapes use N for tokens of one item and W for the width of its embedding. Times are seconds, sizes are bytes.
All are frozen and slotted; a value that cannot be right raises ValueError on construction.
"""

import enum
import math
import re
from dataclasses import dataclass
from typing import Literal

from transfer.checks import Nested, flatten, require_embedding, require_endpoints, require_id, require_positive
from transfer.errors import TriptychError, error_from_code
from transfer.plain import from_plain, to_plain

Modality = Literal["image", "video", "audio"]
OptionValue = int | float | str | bool
_BLOCK_ID = re.compile("(?:[0-9a-f]{32})?")


class Status(enum.Enum):
    """Outcome of a fetch. NOT_FOUND, EXPIRED and BUSY may become OK by encoding again or asking later."""

    OK = "ok"
    NOT_FOUND = "not_found"
    EXPIRED = "expired"
    BUSY = "busy"
    INCOMPATIBLE = "incompatible"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class MediaItem:
    """One image, video or audio of a prompt: exactly one of its bytes (`data`) or where to get them (`url`)."""

    modality: Modality
    data: bytes | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        if (self.data is None) == (self.url is None):
            raise ValueError("a media item has exactly one of data and url")


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """Pipeline to encoder: encode these items, within `timeout_s`. `traceparent`: W3C Trace Context, if traced."""

    request_id: str
    items: tuple[MediaItem, ...]
    processor_options: tuple[tuple[str, OptionValue], ...]
    tenant: str
    timeout_s: float
    traceparent: str | None = None

    def __post_init__(self) -> None:
        require_positive("timeout_s", self.timeout_s)


@dataclass(frozen=True, slots=True)
class Metadata:
    """A small array the prompt needs before the embedding exists, such as image_grid_thw; `values` are row-major."""

    name: str
    shape: tuple[int, ...]
    values: tuple[int | float, ...]

    def __post_init__(self) -> None:
        if any(size < 0 for size in self.shape) or math.prod(self.shape) != len(self.values):
            raise ValueError(f"metadata {self.name}: shape {self.shape} does not fit {len(self.values)} values")

    @classmethod
    def of(cls, name: str, nested: Nested) -> "Metadata":
        """From a number or rectangular nested lists of numbers; ValueError when ragged."""
        shape, values = flatten(nested)
        return cls(name, shape, values)

    def nested(self) -> Nested:
        """The value as a number or nested lists, as `of` takes it."""
        flat: list[Nested] = list(self.values)
        for size in reversed(self.shape[1:]):
            flat = [flat[start : start + size] for start in range(0, len(flat), size)] if size else []
        return flat if self.shape else flat[0]


@dataclass(frozen=True, slots=True)
class EmbeddingRef:
    """What prefill needs to fetch one embedding [N, W]; travels as a JSON-able dict in `ec_transfer_params`.

    `endpoints` has one address per rank of the encoder replica; together they hold all rows exactly once.
    """

    item_key: str
    transfer_id: str
    endpoints: tuple[str, ...]
    num_tokens: int
    width: int
    dtype: str
    expected_bytes: int
    fingerprint: str

    def __post_init__(self) -> None:
        require_id("item_key", self.item_key)
        require_id("transfer_id", self.transfer_id)
        require_endpoints(self.endpoints)
        require_embedding(self.num_tokens, self.width, self.dtype, self.expected_bytes)

    def to_dict(self) -> dict[str, object]:
        """Plain dict of strings, ints and lists."""
        return dict(to_plain(self))

    @classmethod
    def from_dict(cls, data: object) -> "EmbeddingRef":
        """Inverse of `to_dict`; raises ProtocolError for anything else."""
        return from_plain(cls, data)


@dataclass(frozen=True, slots=True)
class EncodeTicket:
    """Encoder to pipeline, at once: what the embedding of one item will be and where to fetch it.

    `layout` names what the W columns hold (for instance the main embedding alone, or with deepstack levels).
    """

    item_key: str
    modality: Modality
    num_tokens: int
    width: int
    dtype: str
    layout: str
    metadata: tuple[Metadata, ...]
    transfer_id: str
    endpoints: tuple[str, ...]
    expected_bytes: int
    fingerprint: str

    def __post_init__(self) -> None:
        require_id("item_key", self.item_key)
        require_id("transfer_id", self.transfer_id)
        require_endpoints(self.endpoints)
        require_embedding(self.num_tokens, self.width, self.dtype, self.expected_bytes)

    def ref(self) -> EmbeddingRef:
        """The part of the ticket that prefill needs."""
        return EmbeddingRef(
            item_key=self.item_key,
            transfer_id=self.transfer_id,
            endpoints=self.endpoints,
            num_tokens=self.num_tokens,
            width=self.width,
            dtype=self.dtype,
            expected_bytes=self.expected_bytes,
            fingerprint=self.fingerprint,
        )


@dataclass(frozen=True, slots=True)
class ItemFailure:
    """Why the item at `index` of an EncodeRequest got no ticket."""

    index: int
    code: str
    message: str

    def to_error(self) -> TriptychError:
        """The typed error behind it."""
        return error_from_code(self.code, self.message)


@dataclass(frozen=True, slots=True)
class EncodeReply:
    """Encoder to pipeline: one ticket per item in order, None where `failures` says why."""

    request_id: str
    tickets: tuple[EncodeTicket | None, ...]
    failures: tuple[ItemFailure, ...]

    def __post_init__(self) -> None:
        missing = [index for index, ticket in enumerate(self.tickets) if ticket is None]
        if sorted(failure.index for failure in self.failures) != missing:
            raise ValueError("every item has either a ticket or one failure")


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """Prefill to encoder: send me this embedding, as soon as it exists, within `timeout_s`.

    `fetch_id` is the client's own number for this request; every answer repeats it. `channels` are those the
    client can receive on, best first; `host_id` tells whether memory can be shared, `bell` where to ring (`doorbell`).
    """

    fetch_id: int
    transfer_id: str
    item_key: str
    fingerprint: str
    host_id: str
    channels: tuple[str, ...]
    timeout_s: float
    bell: str = ""

    def __post_init__(self) -> None:
        require_positive("timeout_s", self.timeout_s)


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [row_start, row_end) of the embedding, `num_bytes` long.

    Where they are is the channel's affair: `region` names it ('' means: they follow as chunks on this connection), with
    `offset` of the first byte, and `block_id` (32 hex digits, or '') tells one use of that memory from the next.
    """

    row_start: int
    row_end: int
    num_bytes: int
    region: str = ""
    offset: int = 0
    block_id: str = ""

    def __post_init__(self) -> None:
        if min(self.row_start, self.row_end - self.row_start, self.num_bytes, self.offset) < 0:
            raise ValueError("a segment has a forward row range and no negative size")
        if not _BLOCK_ID.fullmatch(self.block_id):
            raise ValueError("a block id is 32 hex digits, or empty")


@dataclass(frozen=True, slots=True)
class FetchReply:
    """Encoder to prefill: outcome of a fetch, and where this rank's rows are when it is OK.

    `shape` is that of the whole embedding, [N, W]; `checksum` is the CRC-32 of this rank's bytes, if computed. On the
    zmq channel a second frame may have the first bytes of the first segment; the rest follows in Chunks.
    """

    fetch_id: int
    transfer_id: str
    status: Status
    channel: str = ""
    segments: tuple[Segment, ...] = ()
    shape: tuple[int, ...] = ()
    dtype: str = ""
    checksum: int | None = None
    error_code: str = ""
    error_message: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Header of one data message of the zmq channel: the frame after it belongs at byte `offset` of the embedding."""

    fetch_id: int
    offset: int


@dataclass(frozen=True, slots=True)
class Release:
    """Prefill to encoder: this transfer is done with. Idempotent, never answered."""

    transfer_id: str


@dataclass(frozen=True, slots=True)
class Renew:
    """Anyone who holds the ticket to encoder: the lease's time starts again. Idempotent, never answered."""

    transfer_id: str


@dataclass(frozen=True, slots=True)
class FailureReport:
    """Engine to its worker: why one request failed."""

    request_id: str
    code: str
    message: str
