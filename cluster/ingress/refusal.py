"""Answers that turn a request away before vLLM's application sees it, in the form of its own errors."""

from __future__ import annotations

import json
from collections.abc import Sequence

from starlette.types import Send


async def refuse(
    send: Send,
    status: int,
    kind: str,
    message: str,
    param: str | None = None,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """An OpenAI error object.

    Args:
        kind: the error's `type`, for example RateLimitError.
        param: what in the request is at fault.
    """
    body = json.dumps({"error": {"message": message, "type": kind, "param": param, "code": status}}).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body})
