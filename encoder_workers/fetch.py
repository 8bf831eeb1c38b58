"""Brings the bytes of a media item that came as a URL: guarded against private addresses, bounded in size and time.

Every address that a host name resolves to is checked before the connection and again after each redirect, and the
connection goes to the checked address itself, so that a second look-up cannot answer differently.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass

import httpx

from transfer.errors import BadMedia, LimitExceeded
from transfer.messages import MediaItem

_MAX_REDIRECTS = 5
_SCHEMES = ("http", "https")


@dataclass(frozen=True)
class FetchLimits:
    """What one fetch may cost.

    Attributes:
        allowed_hosts: host names whose private, loopback or link-local addresses may be used all the same.
    """

    item_bytes: int
    timeout_s: float
    allowed_hosts: frozenset[str] = frozenset()


class MediaFetcher:
    """Fetches, each over a connection of its own that ends with it, so that there is nothing to close."""

    def __init__(self, limits: FetchLimits) -> None:
        self._limits = limits
        self._client = httpx.AsyncClient(
            follow_redirects=False,
            trust_env=False,
            timeout=httpx.Timeout(limits.timeout_s),
            # Connections are pooled by address, so a kept one could serve another name than its certificate's.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def bytes_of(self, item: MediaItem) -> bytes:
        """The item's bytes, from itself or from its URL.

        Raises:
            BadMedia: not http(s), a refused address, unreachable, or an answer other than 200.
            LimitExceeded: more than `item_bytes`, or too slow.
        """
        if item.data is not None:
            if len(item.data) > self._limits.item_bytes:
                raise LimitExceeded(f"the {item.modality} is {len(item.data)} bytes; {self._limits.item_bytes} allowed")
            return item.data
        assert item.url is not None
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                return await self._fetch(item.url, item.modality)
        except TimeoutError as error:
            raise LimitExceeded(f"fetching the {item.modality} took over {self._limits.timeout_s:g} s") from error

    async def _fetch(self, url: str, modality: str) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            target, address = await self._checked(url, modality)
            request = self._client.build_request(
                "GET",
                target.copy_with(host=address),
                headers={"Host": _host_header(target)},
                extensions={"sni_hostname": target.host},
            )
            try:
                response = await self._client.send(request, stream=True)
            except httpx.HTTPError as error:
                raise BadMedia(f"cannot fetch the {modality} from {target.host}: {_reason(error)}") from error
            try:
                if response.has_redirect_location:
                    url = str(target.join(response.headers["location"]))
                    continue
                if response.status_code != httpx.codes.OK:
                    raise BadMedia(f"cannot fetch the {modality}: {target.host} answered {response.status_code}")
                return await self._read(response, modality)
            except httpx.InvalidURL as error:
                raise BadMedia(f"cannot fetch the {modality}: {target.host} redirects to no valid URL") from error
            except httpx.HTTPError as error:
                raise BadMedia(f"cannot fetch the {modality} from {target.host}: {_reason(error)}") from error
            finally:
                await response.aclose()
        raise BadMedia(f"cannot fetch the {modality}: more than {_MAX_REDIRECTS} redirects")

    async def _read(self, response: httpx.Response, modality: str) -> bytes:
        too_large = LimitExceeded(f"the {modality} at that URL is larger than {self._limits.item_bytes} bytes")
        declared = response.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._limits.item_bytes:
            raise too_large
        received = bytearray()
        async for chunk in response.aiter_bytes():
            received += chunk
            if len(received) > self._limits.item_bytes:
                raise too_large
        return bytes(received)

    async def _checked(self, url: str, modality: str) -> tuple[httpx.URL, str]:
        """The parsed URL and the address to connect to."""
        try:
            target = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise BadMedia(f"the {modality} URL is not valid: {error}") from error
        if target.scheme not in _SCHEMES or not target.host:
            raise BadMedia(f"the {modality} URL must begin with http://, https:// or data:, not {url[:32]!r}")
        port = target.port or (443 if target.scheme == "https" else 80)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(target.host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise BadMedia(f"cannot fetch the {modality}: the host {target.host} is not known") from error
        addresses = [str(entry[4][0]) for entry in found]
        if target.host not in self._limits.allowed_hosts:
            for address in addresses:
                if not ipaddress.ip_address(address.split("%")[0]).is_global:
                    raise BadMedia(f"the {modality} URL points to {target.host}, whose address is not public")
        return target, addresses[0]


def _host_header(target: httpx.URL) -> str:
    return target.netloc.decode("ascii").rpartition("@")[2]


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
