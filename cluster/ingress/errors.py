"""What each typed error of the stages is over HTTP."""

from __future__ import annotations

from http import HTTPStatus

from vllm.exceptions import GracefulHTTPError, VLLMError, VLLMValidationError

from transfer import BadMedia, Busy, DeadlineExceeded, RetryableError, TriptychError


def http_error(error: TriptychError) -> VLLMError:
    """The exception that vLLM's application answers with the right status and an OpenAI error object."""
    if isinstance(error, BadMedia):
        return VLLMValidationError(error.message)
    return GracefulHTTPError(f"{error.message} [{error.code}]", _status(error))


def _status(error: TriptychError) -> HTTPStatus:
    if isinstance(error, DeadlineExceeded):
        return HTTPStatus.GATEWAY_TIMEOUT
    if isinstance(error, Busy | RetryableError):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.INTERNAL_SERVER_ERROR
