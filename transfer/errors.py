"""The typed errors that stages exchange, with stable codes so that they can travel as (code, message).

TriptychError                      code
├── RetryableError                 -  the same work may succeed elsewhere or later
│   ├── EncoderLost                encoder_lost         the encoder died or cannot be reached
│   ├── WorkerLost                 worker_lost          a prefill or decode worker died or cannot be reached
│   ├── EmbeddingNotFound          embedding_not_found  the encoder never announced this transfer
│   ├── EmbeddingExpired           embedding_expired    its lease ran out or was released
│   ├── EmbeddingCorrupt           embedding_corrupt    checksum differs, or memory was reused while read
│   ├── Busy                       busy                 a limit of the peer is reached
│   ├── QueueFull                  queue_full           as many tokens wait at an engine as may
│   ├── OutOfMemory                out_of_memory        the encoder's device has no room for this item now
│   └── Closed                     closed               this end was closed while work was pending
├── TerminalError                  -  trying again gives the same answer
│   ├── Incompatible               incompatible         model, layout or version differ
│   ├── EncodeFailed               encode_failed        the encoder model failed on this item
│   └── BadMedia (ValueError)      bad_media            the user's media cannot be used: a 4xx
│       └── LimitExceeded          limit_exceeded       the user's media is over a limit
├── DeadlineExceeded               deadline_exceeded    the request's time is over
└── ProtocolError                  protocol_error       a peer sent what the protocol does not allow
    └── VersionMismatch            version_mismatch     a peer speaks another protocol version
"""

import logging
from typing import ClassVar

_logger = logging.getLogger(__name__)


class TriptychError(Exception):
    """Root of the tree. `code` is stable across versions; `message` is for people."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RetryableError(TriptychError):
    """The same work may succeed on another replica, or later."""

    code = "retryable"


class TerminalError(TriptychError):
    """Doing the same work again gives the same answer."""

    code = "terminal"


class EncoderLost(RetryableError):
    """The encoder died or cannot be reached; another encoder can do the item."""

    code = "encoder_lost"


class WorkerLost(RetryableError):
    """A prefill or decode worker died or cannot be reached; another one can do the work."""

    code = "worker_lost"


class EmbeddingNotFound(RetryableError):
    """The encoder does not know this transfer; the item must be encoded again."""

    code = "embedding_not_found"


class EmbeddingExpired(RetryableError):
    """The lease ended before the fetch; the item must be encoded again."""

    code = "embedding_expired"


class EmbeddingCorrupt(RetryableError):
    """The bytes that arrived are not the bytes that were published."""

    code = "embedding_corrupt"


class Busy(RetryableError):
    """A limit of the peer is reached; try later or elsewhere."""

    code = "busy"


class QueueFull(RetryableError):
    """As many prompt tokens wait at an engine as its stage allows; nothing was begun."""

    code = "queue_full"


class OutOfMemory(RetryableError):
    """The encoder's device has no room for this item, at the moment or at all."""

    code = "out_of_memory"


class Closed(RetryableError):
    """This end was closed while the work was pending."""

    code = "closed"


class Incompatible(TerminalError):
    """The two ends serve different models, layouts or protocol versions."""

    code = "incompatible"


class EncodeFailed(TerminalError):
    """The encoder ran and failed on this item."""

    code = "encode_failed"


class BadMedia(TerminalError, ValueError):
    """The user's media cannot be decoded or used."""

    code = "bad_media"


class LimitExceeded(BadMedia):
    """The user's media is over a configured limit."""

    code = "limit_exceeded"


class DeadlineExceeded(TriptychError):
    """The time the caller gave is over."""

    code = "deadline_exceeded"


class ProtocolError(TriptychError):
    """A peer sent bytes that the protocol does not allow."""

    code = "protocol_error"


class VersionMismatch(ProtocolError):
    """A peer speaks another version of the protocol."""

    code = "version_mismatch"


ERROR_TYPES: dict[str, type[TriptychError]] = {
    error.code: error
    for error in (
        TriptychError,
        RetryableError,
        TerminalError,
        EncoderLost,
        WorkerLost,
        EmbeddingNotFound,
        EmbeddingExpired,
        EmbeddingCorrupt,
        Busy,
        QueueFull,
        OutOfMemory,
        Closed,
        Incompatible,
        EncodeFailed,
        BadMedia,
        LimitExceeded,
        DeadlineExceeded,
        ProtocolError,
        VersionMismatch,
    )
}
"""Every error by its code."""


def error_from_code(code: str, message: str) -> TriptychError:
    """The error that `(error.code, error.message)` came from; an unknown code becomes a ProtocolError that names it."""
    error_type = ERROR_TYPES.get(code)
    if error_type is None:
        return ProtocolError(f"peer sent unknown error code {code!r}: {message}")
    return error_type(message)


def unexpected(error: Exception) -> TriptychError:
    """An error where any may come: a typed one as it is, any other logged, and as the root of the tree."""
    if isinstance(error, TriptychError):
        return error
    _logger.error("unexpected error", exc_info=error)
    return TriptychError(f"internal error: {type(error).__name__}: {error}")
