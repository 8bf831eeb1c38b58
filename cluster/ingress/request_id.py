"""The id that names a request in logs and traces: the client's own `X-Request-Id` if it is sane, else a new one.

Ray Serve's proxy gives every request such a header and puts the same one into the answer, so what it says is what the
client can ask about.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

from starlette.types import Message, Scope, Send

from cluster.ingress.refusal import refuse

_HEADER = b"x-request-id"
_TRACEPARENT = b"traceparent"
_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+/=@-]{0,127}")
_REFUSAL = "X-Request-Id must be 1 to 128 letters, digits or any of . _ : + / = @ -, beginning with a letter or digit"


@dataclass(frozen=True, slots=True)
class IdentifiedRequest:
    """A request with its id.

    Attributes:
        request_id: unique, also among requests to which a client gave the same id; it begins with that id.
        scope: the request's scope, in which the header carries `request_id`, which vLLM makes its own ids of.
        header: to be added to the answer; None where the proxy adds it.
        traceparent: the caller's place in a trace (W3C Trace Context), if it sent one.
    """

    request_id: str
    scope: Scope
    header: tuple[bytes, bytes] | None
    traceparent: str | None

    @classmethod
    def of(cls, scope: Scope) -> IdentifiedRequest | None:
        """The request of this scope; None when its id is not sane."""
        headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        given = next((value for name, value in headers if name.lower() == _HEADER), None)
        traceparent = next((value.decode("latin-1") for name, value in headers if name.lower() == _TRACEPARENT), None)
        unique = uuid.uuid4().hex
        if given is None:
            header = (_HEADER, unique.encode())
            return cls(unique, {**scope, "headers": [*headers, header]}, header, traceparent)
        text = given.decode("latin-1")
        if _SANE.fullmatch(text) is None:
            return None
        request_id = f"{text}-{unique[:8]}"
        others = [(name, value) for name, value in headers if name.lower() != _HEADER]
        return cls(request_id, {**scope, "headers": [*others, (_HEADER, request_id.encode())]}, None, traceparent)

    def answered(self, start: Message) -> Message:
        """The start of the answer, with the id where nobody else adds it."""
        if self.header is None:
            return start
        return {**start, "headers": [*start.get("headers", []), self.header]}


async def refuse_request_id(send: Send) -> None:
    """Answer 400 to a request whose id cannot be used: it would stand in logs, where it must not forge lines."""
    await refuse(send, 400, "BadRequestError", _REFUSAL, param="X-Request-Id")
