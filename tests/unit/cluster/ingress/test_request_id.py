"""The id of a request: the client's if it is sane, unique all the same, and in the answer exactly once."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.ingress.request_id import IdentifiedRequest


def _request(*headers: tuple[bytes, bytes]) -> IdentifiedRequest | None:
    return IdentifiedRequest.of({"type": "http", "headers": list(headers)})


def _names(message: Any) -> list[bytes]:
    return [name for name, _ in message["headers"]]


def test_two_requests_of_one_id_are_told_apart() -> None:
    """Engines and failure reports go by this id; a client that sends the same one twice must not mix its answers."""
    first, second = _request((b"x-request-id", b"a-1")), _request((b"x-request-id", b"a-1"))
    assert first is not None
    assert second is not None
    assert first.request_id != second.request_id
    assert first.request_id.startswith("a-1-")
    assert dict(first.scope["headers"])[b"x-request-id"] == first.request_id.encode()


def test_the_proxy_answers_the_id_that_it_was_given() -> None:
    given = _request((b"X-Request-Id", b"a"), (b"accept", b"*/*"))
    assert given is not None
    assert _names(given.answered({"type": "http.response.start", "headers": []})) == []
    assert [name.lower() for name, _ in given.scope["headers"]].count(b"x-request-id") == 1


def test_without_one_it_is_made_and_answered() -> None:
    made = _request((b"traceparent", b"00-1-2-01"))
    assert made is not None
    start = made.answered({"type": "http.response.start", "headers": [(b"a", b"b")]})
    assert (b"x-request-id", made.request_id.encode()) in start["headers"]
    assert made.traceparent == "00-1-2-01"


@pytest.mark.parametrize("value", [b"", b"-a", b"a" * 129, b"a b", b"a\tb", b'a"b', "ä".encode(), b"a\x1b[31m"])
def test_what_could_forge_a_line_is_refused(value: bytes) -> None:
    assert _request((b"x-request-id", value)) is None
