"""Videos that arrive as a sequence of images: the payload of a `data:video/jpeg;base64,` URL, frames joined by commas.

Video files (MP4 and the like) are read by `encoder_workers.video_files`.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from encoder_workers.images import ImageSize, read_image_size
from encoder_workers.media import Limits
from transfer.errors import BadMedia, LimitExceeded

_BASE64_AND_COMMA = re.compile(rb"[A-Za-z0-9+/=,]*")
_SNIFFED_BYTES = 64


def is_frame_sequence(data: bytes) -> bool:
    """Whether this is such a payload, by its first bytes; video files have others than base64's among theirs."""
    return _BASE64_AND_COMMA.fullmatch(data[:_SNIFFED_BYTES]) is not None


@dataclass(frozen=True)
class FrameSequence:
    """Image files of the frames in order, all of one upright size."""

    frames: tuple[bytes, ...]
    size: ImageSize


def read_frames(data: bytes, limits: Limits) -> FrameSequence:
    """Split the payload and read every frame's header. Raises BadMedia and LimitExceeded; decodes no pixels."""
    if not data:
        raise BadMedia("the video is empty (0 bytes)")
    if len(data) > limits.item_bytes:
        raise LimitExceeded(f"the video has {len(data)} bytes, more than the limit of {limits.item_bytes}")
    parts = data.split(b",", limits.frames)
    if len(parts) > limits.frames:
        raise LimitExceeded(f"the video has more frames than the limit of {limits.frames}")
    frames = []
    for index, part in enumerate(parts):
        try:
            frames.append(base64.b64decode(part, validate=True))
        except binascii.Error as error:
            raise BadMedia(
                "the video is not a sequence of base64 images joined by commas (a data:video/jpeg URL); "
                f"part {index} of {len(parts)} is not base64"
            ) from error
    sizes = []
    for index, frame in enumerate(frames):
        try:
            sizes.append(read_image_size(frame, limits))
        except LimitExceeded as error:
            raise LimitExceeded(f"frame {index} of the video: {error.message}") from error
        except BadMedia as error:
            raise BadMedia(f"frame {index} of the video: {error.message}") from error
    for index, size in enumerate(sizes):
        if size != sizes[0]:
            raise BadMedia(
                f"frame {index} of the video is {size.width}x{size.height}, frame 0 {sizes[0].width}x{sizes[0].height}"
            )
    return FrameSequence(tuple(frames), sizes[0])
