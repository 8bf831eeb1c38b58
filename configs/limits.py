"""What one request may ask for, at most."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from configs.base import Settings
from configs.sizes import ByteSize, PixelCount

Modality = Literal["image", "audio", "video"]


def _default_items() -> dict[Modality, int]:
    return {"image": 16, "audio": 4, "video": 2}


class LimitsConfig(Settings):
    """What a request may ask for."""

    items_per_prompt: dict[Modality, int] = Field(
        default_factory=_default_items,
        description="Media items per prompt, by modality.",
    )
    completions_per_prompt: int = Field(
        128, ge=1, description="The highest `n` of a request; each of its completions takes the work of a request."
    )
    item_bytes: ByteSize = Field(64 * 2**20, description="Bytes of one media item, decoded from base64 or fetched.")
    pixels: PixelCount = Field(
        50_000_000, description="Pixels of one picture or frame, read from its header before decoding."
    )
    video_frames: int = Field(768, ge=1, description="Frames shown of one video.")
    video_s: float = Field(600.0, gt=0, description="Seconds that one video file may last.")
    fetch_timeout_s: float = Field(20.0, gt=0, description="Time to fetch one media URL, redirects included.")
    deadline_s: float = Field(300.0, gt=0, description="Time a request has from arrival to its last token.")
    encode_attempts: int = Field(3, ge=1, description="Encodes of one item before a retryable failure becomes final.")
    busy_wait_s: float = Field(
        5.0,
        ge=0,
        description="How long a request for which no stage has worked yet waits while all replicas of the next one "
        "hold as much as they may, before it is answered 503; 0 answers at once.",
    )
    allowed_media_hosts: tuple[str, ...] = Field(
        (), description="Hosts whose private or loopback addresses may be fetched from; public hosts need no entry."
    )
