"""Guards: a URL that reaches an address of our own network, and a server that costs memory or time without bound."""

import asyncio
import socket
import time
from typing import Any

import pytest

from encoder_workers.fetch import FetchLimits, MediaFetcher
from transfer import BadMedia, LimitExceeded, MediaItem

LIMIT = 64 * 1024
BODY = bytes(range(256)) * 8


def fetcher(*allowed: str, timeout_s: float = 20.0) -> MediaFetcher:
    return MediaFetcher(FetchLimits(LIMIT, timeout_s, frozenset(allowed)))


async def fetched(made: MediaFetcher, url: str) -> bytes:
    return await made.bytes_of(MediaItem("image", url=url))


async def test_an_allowed_host_is_fetched(web: Any) -> None:
    assert await fetched(fetcher("127.0.0.1"), web.answer("/a", BODY)) == BODY
    assert web.hosts == [web.url.removeprefix("http://")]


async def test_a_connection_ends_with_its_fetch() -> None:
    """Though the server would keep it: nothing closes a fetcher."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
        assert await reader.read() == b""
        writer.close()
        ended.set()

    made = fetcher("127.0.0.1")
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await fetched(made, f"http://127.0.0.1:{port}/a") == b"x"
        await asyncio.wait_for(ended.wait(), 20)


async def test_bytes_that_came_along_are_only_measured(web: Any) -> None:
    made = fetcher()
    assert await made.bytes_of(MediaItem("image", data=bytes(LIMIT))) == bytes(LIMIT)
    with pytest.raises(LimitExceeded):
        await made.bytes_of(MediaItem("image", data=bytes(LIMIT + 1)))


async def test_a_private_address_is_refused_before_a_connection(web: Any) -> None:
    with pytest.raises(BadMedia, match="not public"):
        await fetched(fetcher(), web.answer("/a", BODY))
    assert web.hits == []


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "10.1.2.3", "169.254.169.254", "0.0.0.0", "[::1]", "[fd00::1]", "[::ffff:127.0.0.1]", "2130706433"],
)
async def test_no_spelling_of_a_private_address_is_fetched(host: str) -> None:
    with pytest.raises(BadMedia, match="not public"):
        await fetched(fetcher(), f"http://{host}/a")


async def test_the_address_counts_that_the_name_resolves_to(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo
    asked: list[str] = []

    def resolve(host: str, *rest: Any, **more: Any) -> Any:
        asked.append(host)
        return look_up("127.0.0.1" if host == "media.example" else host, *rest, **more)

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    url = web.answer("/a", BODY).replace("127.0.0.1", "media.example")
    with pytest.raises(BadMedia, match=r"media\.example, whose address is not public"):
        await fetched(fetcher("127.0.0.1"), url)
    assert web.hits == []
    asked.clear()
    assert await fetched(fetcher("media.example"), url) == BODY
    assert web.hosts == [url.removeprefix("http://").removesuffix("/a")]
    # Asked once: a second answer, for the connection, could be another one.
    assert asked.count("media.example") == 1


async def test_a_redirect_is_followed_and_its_target_checked(web: Any) -> None:
    inside = web.answer("/inside", BODY)
    assert await fetched(fetcher("127.0.0.1"), web.answer("/a", b"", 302, Location="/inside")) == BODY
    web.hits.clear()
    elsewhere = inside.replace("127.0.0.1", "127.0.0.2")
    with pytest.raises(BadMedia, match=r"127\.0\.0\.2, whose address is not public"):
        await fetched(fetcher("127.0.0.1"), web.answer("/b", b"", 302, Location=elsewhere))
    assert web.hits == ["/b"]


async def test_a_redirect_to_another_scheme_is_refused(web: Any) -> None:
    with pytest.raises(BadMedia, match="http"):
        await fetched(fetcher("127.0.0.1"), web.answer("/a", b"", 302, Location="file:///etc/passwd"))


async def test_redirects_are_limited(web: Any) -> None:
    with pytest.raises(BadMedia, match="redirects"):
        await fetched(fetcher("127.0.0.1"), web.answer("/a", b"", 302, Location="/a"))
    assert len(web.hits) == 6


@pytest.mark.parametrize(
    ("status", "headers"),
    [(404, {}), (500, {}), (302, {}), (304, {}), (204, {}), (302, {"Location": "http://[::x/"})],
    ids=["404", "500", "no target", "304", "204", "bad target"],
)
async def test_any_other_answer_is_the_items_fault(web: Any, status: int, headers: dict[str, str]) -> None:
    with pytest.raises(BadMedia):
        await fetched(fetcher("127.0.0.1"), web.answer("/a", b"", status, **headers))


async def test_a_declared_size_over_the_limit_is_not_read(web: Any) -> None:
    with pytest.raises(LimitExceeded):
        await fetched(fetcher("127.0.0.1"), web.answer("/a", bytes(LIMIT + 1)))
    assert len(await fetched(fetcher("127.0.0.1"), web.answer("/b", bytes(LIMIT)))) == LIMIT


async def test_an_undeclared_size_is_cut_at_the_limit(web: Any) -> None:
    with pytest.raises(LimitExceeded):
        await fetched(fetcher("127.0.0.1"), web.stream("/a", bytes(16 * 1024), 100_000))
    deadline = time.monotonic() + 20
    while "/a cut" not in web.hits:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_server_that_trickles_is_given_up_in_time(web: Any) -> None:
    started = time.monotonic()
    with pytest.raises(LimitExceeded, match="took over"):
        await fetched(fetcher("127.0.0.1", timeout_s=0.5), web.stream("/a", b"x", 600, pause_s=0.05))
    assert time.monotonic() - started < 15


async def test_a_host_that_is_not_there_is_the_items_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(BadMedia, match="cannot fetch"):
        await fetched(fetcher("127.0.0.1"), f"http://127.0.0.1:{port}/a")
    for url in ("http://no-such-host.invalid/a", "ftp://example.com/a", "http:///a", "http://exa mple.com/", "nothing"):
        with pytest.raises(BadMedia):
            await fetched(fetcher(), url)
