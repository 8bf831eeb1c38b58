"""What a server answers to a fetch, and which typed error a client makes of that answer."""

from transfer.channels.base import Payload, SendChannel
from transfer.errors import (
    Busy,
    EmbeddingExpired,
    EmbeddingNotFound,
    EncodeFailed,
    Incompatible,
    RetryableError,
    TriptychError,
    error_from_code,
)
from transfer.leases import Lease
from transfer.messages import FetchReply, FetchRequest, Status

_MAX_ERROR_CHARACTERS = 4096
_DEFAULT_ERRORS: dict[Status, type[TriptychError]] = {
    Status.NOT_FOUND: EmbeddingNotFound,
    Status.EXPIRED: EmbeddingExpired,
    Status.BUSY: Busy,
    Status.INCOMPATIBLE: Incompatible,
    Status.FAILED: EncodeFailed,
}


def refusal(request: FetchRequest, status: Status, error: TriptychError) -> FetchReply:
    """A reply that is not OK, carrying the typed reason."""
    assert status is not Status.OK
    return FetchReply(
        fetch_id=request.fetch_id,
        transfer_id=request.transfer_id,
        status=status,
        error_code=error.code,
        # The message may hold anything, and a reply that cannot be sent would leave the fetch without an answer.
        error_message=error.message[:_MAX_ERROR_CHARACTERS].encode(errors="replace").decode(),
    )


def failure(request: FetchRequest, error: TriptychError) -> FetchReply:
    """The refusal for an item whose encoding failed: retryable by encoding again, or terminal, as the error is."""
    status = Status.NOT_FOUND if isinstance(error, RetryableError) else Status.FAILED
    return refusal(request, status, error)


def delivery(
    peer: bytes, request: FetchRequest, lease: Lease, payload: Payload, channels: dict[str, SendChannel]
) -> tuple[FetchReply, SendChannel | None]:
    """The OK reply for a ready lease and the channel it goes on: the first the peer names that can serve it."""
    for name in request.channels:
        channel = channels.get(name)
        if channel is not None and channel.can_serve(request, payload):
            return (
                FetchReply(
                    fetch_id=request.fetch_id,
                    transfer_id=request.transfer_id,
                    status=Status.OK,
                    channel=name,
                    segments=channel.begin(peer, payload),
                    shape=(lease.num_tokens, lease.width),
                    dtype=lease.dtype,
                    checksum=payload.checksum,
                ),
                channel,
            )
    error = Incompatible(f"no common channel: peer takes {list(request.channels)}, encoder has {sorted(channels)}")
    return refusal(request, Status.INCOMPATIBLE, error), None


def reply_error(reply: FetchReply) -> TriptychError:
    """The error a reply that is not OK stands for."""
    if reply.error_code:
        return error_from_code(reply.error_code, reply.error_message)
    return _DEFAULT_ERRORS[reply.status](f"fetch of {reply.transfer_id}: {reply.status.value}")
