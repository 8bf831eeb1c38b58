"""Answers 400 to requests over which vLLM's own checks stumble, and every error in one form.

Before its types are checked a body goes through checks of vLLM's that take the types of some fields for granted, the
parts of a message are read by code that asserts, and each item of a Responses request by code that takes the first part
of a list which may be empty. What they raise then is the request's fault, not the server's.
"""

from __future__ import annotations

import logging
import traceback
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.dependencies.utils import solve_dependencies
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from vllm.entrypoints.openai.responses.utils import construct_input_messages
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMValidationError

from cluster.ingress.errors import http_error
from transfer import TriptychError

logger = logging.getLogger(__name__)

UNREADABLE = (AssertionError, AttributeError, LookupError, RecursionError)
"""What code raises that meets values of types that it does not expect."""
_READERS = {solve_dependencies.__code__, construct_input_messages.__code__}


def answer_unreadable(app: FastAPI) -> None:
    """Add the answers to an application whose middleware stands already."""
    for kind in (*UNREADABLE, Exception):
        app.add_exception_handler(kind, _answer)
    # Of these vLLM gives only FastAPI's its form, and not what Starlette raises: no such path, no such method.
    app.add_exception_handler(HTTPException, _answer_http)
    app.middleware_stack = app.build_middleware_stack()


def unreadable(what: str, error: Exception, parameter: str | None) -> VLLMValidationError:
    """The error that a client gets for one of `UNREADABLE`; the log has where it came from."""
    logger.warning("%s cannot be read", what, exc_info=error)
    return VLLMValidationError(f"{what} cannot be read: {type(error).__name__} {error}".rstrip(), parameter=parameter)


async def _answer(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, UNREADABLE) and _is_of_the_body(error):
        answer = create_error_response(unreadable("the body", error, _field_of(error)))
    else:
        logger.error("a request failed in the ingress", exc_info=error)
        told = TriptychError(f"a request failed in the ingress: {type(error).__name__} {error}".rstrip())
        answer = create_error_response(http_error(told))
    return JSONResponse(answer.model_dump(), status_code=answer.error.code)


async def _answer_http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException), error
    status = HTTPStatus(error.status_code)
    answer = create_error_response(error.detail, status.phrase, status)
    return JSONResponse(answer.model_dump(), status_code=status, headers=error.headers)


def _is_of_the_body(error: Exception) -> bool:
    """Whether it was raised while FastAPI made the endpoint's arguments of it, or vLLM the messages of its items."""
    return any(frame.f_code in _READERS for frame, _ in traceback.walk_tb(error.__traceback__))


def _field_of(error: Exception) -> str | None:
    """The field that the failed check is named after: vLLM's are methods such as `check_structured_outputs_count`."""
    found: list[str] = []
    for frame, _ in traceback.walk_tb(error.__traceback__):
        model = frame.f_locals.get("cls")
        if isinstance(model, type) and issubclass(model, BaseModel):
            found += [name for name in model.model_fields if name in frame.f_code.co_name]
    return max(found, key=len, default=None)
