"""Lifts media out of chat messages without opening them: vLLM's media connector, replaced by one that only carries.

Each item's ticket is asked for the moment the item is in hand, so that the encoder works while the prompt is rendered.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

import pybase64
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media.connector import MEDIA_CONNECTOR_REGISTRY, MediaConnector

from cluster.ingress.embedding_parts import given_part
from cluster.request import TicketedItem
from transfer import MediaItem, Modality

CONNECTOR_NAME = "triptych"
_LARGE_BYTES = 4 * 1024 * 1024
_FRAME_SEQUENCE = "video/jpeg;base64"

AskTicket = Callable[[MediaItem], "asyncio.Task[TicketedItem]"]
_ask: ContextVar[AskTicket] = ContextVar("triptych_ask_ticket")


@dataclass(frozen=True, slots=True)
class CarriedItem:
    """A media item on its way through vLLM's renderer, and its ticket that is being asked for."""

    media: MediaItem
    ticket: asyncio.Task[TicketedItem]


@contextlib.contextmanager
def asking_with(ask: AskTicket) -> Iterator[None]:
    """While this lasts, items that the connector carries have their tickets asked for by `ask`."""
    token = _ask.set(ask)
    try:
        yield
    finally:
        _ask.reset(token)


@MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR_NAME)
class CarryingConnector(MediaConnector):  # type: ignore[misc]
    """Turns each media URL of a message into a `CarriedItem`: bytes for data: URLs, else the URL itself.

    The encoder fetches http(s) URLs, under its own guards.
    """

    async def fetch_image_async(self, image_url: str, **_: Any) -> CarriedItem:
        return await _carried("image", image_url)

    async def fetch_audio_async(self, audio_url: str, **_: Any) -> CarriedItem:
        return await _carried("audio", audio_url)

    async def fetch_video_async(self, video_url: str, **_: Any) -> CarriedItem:
        return await _carried("video", video_url)


async def _carried(modality: Modality, url: str) -> CarriedItem:
    media = await _item(modality, url)
    return CarriedItem(media, _ask.get()(media))


async def _item(modality: Modality, url: str) -> MediaItem:
    given = given_part(url)
    if given is not None:
        return MediaItem(modality, data=await asyncio.to_thread(given.packed))
    scheme = url.split(":", 1)[0].lower()
    if scheme in ("http", "https"):
        return MediaItem(modality, url=url)
    if scheme != "data":
        raise VLLMValidationError(
            f"the {modality} URL must begin with http://, https:// or data:, not {url[:32]!r}",
            parameter=f"{modality}_url",
        )
    data = await asyncio.to_thread(_payload, url) if len(url) > _LARGE_BYTES else _payload(url)
    if data is None:
        raise VLLMValidationError(
            f"the {modality}'s data: URL is not valid; write data:<type>;base64,<data>", parameter=f"{modality}_url"
        )
    if not data:
        raise VLLMValidationError(f"the {modality}'s data: URL is empty", parameter=f"{modality}_url")
    return MediaItem(modality, data=data)


def _payload(url: str) -> bytes | None:
    """The bytes of a data: URL (RFC 2397), or None when it is malformed.

    Of a sequence of frames, base64 files joined by commas, the payload as it is: the encoder takes it apart.
    """
    header, comma, body = url[len("data:") :].partition(",")
    if not comma:
        return None
    if header.lower() == _FRAME_SEQUENCE:
        return body.encode()
    if not header.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return pybase64.b64decode(body, validate=True)
    except ValueError:
        return None
