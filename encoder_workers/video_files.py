"""Reads video files (MP4, WebM, Matroska, AVI and the like): size, length and rate from headers, then chosen frames.

PyAV's decoders give the same pixels as OpenCV's, which vLLM uses: both convert by FFmpeg's scaler with its defaults.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import av
import torch
from av.container import InputContainer
from av.video.stream import VideoStream

from encoder_workers.images import ImageSize
from encoder_workers.media import Limits
from encoder_workers.mp4_rotation import read_rotation
from transfer.errors import BadMedia, LimitExceeded

# Demuxers that read nothing but the bytes given: play lists and the like would open other files and addresses.
_OPEN_OPTIONS = {"format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,gif", "protocol_whitelist": ""}
_MAX_RATE = 240.0
_QUARTER = 90


@dataclass(frozen=True)
class VideoFile:
    """What a file's headers tell of its first video track.

    Attributes:
        size: of the frames held upright.
        fps: frames a second of the file itself.
        rotation: degrees clockwise by which stored frames are turned.
    """

    size: ImageSize
    num_frames: int
    fps: float
    rotation: int


def read_video_file(data: bytes, limits: Limits) -> VideoFile:
    """From the headers, decoding nothing. Raises BadMedia, or LimitExceeded for what is over `limits`."""
    with _opened(data, limits) as (container, stream):
        fps = float(stream.guessed_rate or stream.average_rate or 0)
        width, height = stream.codec_context.width, stream.codec_context.height
        if not width or not height or not fps > 0:
            raise BadMedia(f"the video's header says {width}x{height} at {fps:g} frames a second")
        if fps > _MAX_RATE:
            raise LimitExceeded(f"the video has {fps:g} frames a second, more than {_MAX_RATE:g}")
        if width * height > limits.pixels:
            raise LimitExceeded(
                f"the video is {width}x{height}, {width * height} pixels, more than the limit of {limits.pixels}"
            )
        num_frames = _num_frames(container, stream, fps)
        if num_frames < 1:
            raise BadMedia("the video has no frames")
        if num_frames / fps > limits.video_s:
            raise LimitExceeded(
                f"the video lasts {num_frames / fps:.1f} s, more than the limit of {limits.video_s:g} s"
            )
    rotation = read_rotation(data)
    upright = ImageSize(width, height) if rotation % (2 * _QUARTER) else ImageSize(height, width)
    return VideoFile(upright, num_frames, fps, rotation)


def decode_frames_at(data: bytes, file: VideoFile, indices: Sequence[int], limits: Limits) -> Iterator[torch.Tensor]:
    """Upright frames [height, width, 3] in uint8 at these ascending indices, one at a time.

    Raises BadMedia when the data ends before the last of them or is not what the header says.
    """
    wanted = iter(indices)
    next_index = next(wanted, None)
    with _opened(data, limits) as (container, stream):
        stream.codec_context.options = {"max_pixels": str(limits.pixels)}
        for index, frame in enumerate(container.decode(stream)):
            if next_index is None:
                return
            if index == next_index:
                yield _upright(frame, file)
                next_index = next(wanted, None)
        if next_index is not None:
            raise BadMedia(
                f"the video's header says {file.num_frames} frames, its data ends before number {next_index}"
            )


@contextlib.contextmanager
def _opened(data: bytes, limits: Limits) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its first video track; what FFmpeg finds wrong in the block becomes BadMedia."""
    if not data:
        raise BadMedia("the video is empty (0 bytes)")
    if len(data) > limits.item_bytes:
        raise LimitExceeded(f"the video has {len(data)} bytes, more than the limit of {limits.item_bytes}")
    try:
        with av.open(io.BytesIO(data), "r", options=_OPEN_OPTIONS) as container:
            if not container.streams.video:
                raise BadMedia("the file has no video track")
            yield container, container.streams.video[0]
    except av.FFmpegError as error:
        raise BadMedia(f"the video is damaged or in no known format: {error.strerror}") from error


def _num_frames(container: InputContainer, stream: VideoStream, fps: float) -> int:
    """Packets that are shown; the count in a header may be missing, or include what an edit list hides.

    Where only a duration is told it bounds the count too: some codecs have packets that show nothing.
    """
    counted = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
    if stream.frames or container.duration is None:
        return counted
    return min(counted, math.floor(container.duration / av.time_base * fps + 0.5))


def _upright(frame: av.VideoFrame, file: VideoFile) -> torch.Tensor:
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
    upright = torch.rot90(pixels, -(file.rotation // _QUARTER), (0, 1))
    if tuple(upright.shape[:2]) != (file.size.height, file.size.width):
        height, width = upright.shape[:2]
        raise BadMedia(
            f"the video's header says {file.size.width}x{file.size.height}, one of its frames is {width}x{height}"
        )
    return upright
