"""What each typed error of the stages is over HTTP."""

from __future__ import annotations

from http import HTTPStatus

from vllm.exceptions import GracefulHTTPError, VLLMError, VLLMValidationError

from cluster.ingress.observation import current_observation
from transfer import BadMedia, Busy, DeadlineExceeded, RetryableError, TriptychError


def http_error(error: TriptychError) -> VLLMError:
    """The exception that vLLM's application answers with the right status and an OpenAI error object.

    It is noted with the request too, for a stream in which vLLM loses it.
    """
    if isinstance(error, BadMedia):
        told: VLLMError = VLLMValidationError(error.message)
    else:
        told = GracefulHTTPError(f"{error.message} [{error.code}]", _status(error))
    observation = current_observation()
    if observation is not None:
        observation.fail(error.code, told)
    return told


def error_behind(error: Exception) -> VLLMError:
    """What to tell of an error: vLLM's own that it came of, or that the ingress failed."""
    cause = error.__cause__ or error
    if isinstance(cause, VLLMError):
        return cause
    return http_error(TriptychError(f"a request failed in the ingress: {type(cause).__name__} {cause}".rstrip()))


def _status(error: TriptychError) -> HTTPStatus:
    if isinstance(error, DeadlineExceeded):
        return HTTPStatus.GATEWAY_TIMEOUT
    if isinstance(error, Busy | RetryableError):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.INTERNAL_SERVER_ERROR
