"""The Qwen-VL families' processor: describes, decodes and prepares images and videos."""

from __future__ import annotations

from dataclasses import asdict, replace

from encoder_workers.families.qwen_pixels import PixelSettings, image_patches, target_size
from encoder_workers.families.qwen_video import (
    DEFAULT_FPS,
    VideoSettings,
    decode_frames,
    video_metadata,
    video_patches,
)
from encoder_workers.frame_sequences import read_frames
from encoder_workers.images import decode_image, read_image_size
from encoder_workers.media import (
    Decoded,
    DecodedImage,
    DecodedVideo,
    ItemMetadata,
    Limits,
    Media,
    Prepared,
    ProcessorOptions,
)
from transfer.errors import BadMedia, LimitExceeded
from transfer.messages import Metadata, Modality

_OPTIONS = ("fps", "max_pixels", "min_pixels")


class QwenVLProcessor:
    """Implements encoder_workers.interface.Processor.

    Options of a request: `min_pixels` and `max_pixels` replace the checkpoint's bounds; `fps` is the number of frames a
    second at which the frames of a video were taken.
    """

    modalities: tuple[Modality, ...] = ("image", "video")

    def __init__(self, pixels: PixelSettings, video: VideoSettings) -> None:
        self._pixels = pixels
        self._video = video

    @property
    def settings(self) -> dict[str, object]:
        return {"image": asdict(self._pixels), "video": asdict(self._video)}

    def describe(self, media: Media, limits: Limits) -> ItemMetadata:
        """Raises BadMedia as reading its header does; ValueError for an option it does not know."""
        match media.modality:
            case "image":
                size = read_image_size(media.data, limits)
                return _within(self.image_metadata(size.height, size.width, media.options), limits)
            case "video":
                sequence = read_frames(media.data, limits)
                size, num_frames = sequence.size, len(sequence.frames)
                return _within(self.video_metadata(num_frames, size.height, size.width, media.options), limits)
            case "audio":
                raise BadMedia("this model takes images and videos, not audio")

    def image_metadata(self, height: int, width: int, options: ProcessorOptions = ()) -> ItemMetadata:
        """The token formula: grid and number of tokens of an upright image of this size in pixels."""
        settings = _bounded(self._pixels, options)
        target_height, target_width = target_size(
            height, width, factor=settings.factor, min_pixels=settings.min_pixels, max_pixels=settings.max_pixels
        )
        grid = (1, target_height // settings.patch_size, target_width // settings.patch_size)
        num_patches = grid[1] * grid[2]
        return ItemMetadata(
            modality="image",
            num_tokens=num_patches // settings.merge_size**2,
            num_patches=num_patches,
            prompt=(Metadata.of("image_grid_thw", grid),),
        )

    def video_metadata(self, num_frames: int, height: int, width: int, options: ProcessorOptions = ()) -> ItemMetadata:
        """The token formula for a video of this many frames of this size."""
        settings = replace(self._video, pixels=_bounded(self._video.pixels, options))
        return video_metadata(num_frames, height, width, _frames_per_second(options), settings)

    def decode(self, media: Media, limits: Limits) -> Decoded:
        metadata = self.describe(media, limits)
        if media.modality == "video":
            sequence = read_frames(media.data, limits)
            frames = decode_frames(sequence, _grid(metadata), limits, self._video.pixels.patch_size)
            return DecodedVideo(frames, metadata)
        return DecodedImage(decode_image(media.data, limits), metadata)

    def preprocess(self, decoded: Decoded) -> Prepared:
        grid = _grid(decoded.metadata)
        if isinstance(decoded, DecodedVideo):
            return Prepared(video_patches(decoded.frames, self._video), grid, decoded.metadata)
        assert isinstance(decoded, DecodedImage), type(decoded)
        patch = self._pixels.patch_size
        rows = image_patches(decoded.pixels, grid[1] * patch, grid[2] * patch, self._pixels)
        return Prepared(rows, grid, decoded.metadata)


def _grid(metadata: ItemMetadata) -> tuple[int, int, int]:
    frames, height, width = metadata.array(f"{metadata.modality}_grid_thw").values
    return int(frames), int(height), int(width)


def _within(metadata: ItemMetadata, limits: Limits) -> ItemMetadata:
    if metadata.num_tokens > limits.tokens:
        raise LimitExceeded(
            f"the {metadata.modality} would take {metadata.num_tokens} tokens, more than the limit of {limits.tokens}"
        )
    return metadata


def _bounded(settings: PixelSettings, options: ProcessorOptions) -> PixelSettings:
    """Settings of one request, as with vLLM's mm_processor_kwargs."""
    for name, value in options:
        if name not in _OPTIONS:
            raise ValueError(f"unknown processor option {name!r}; known: {', '.join(_OPTIONS)}")
        if name == "fps":
            continue
        if type(value) is not int or value < 1:
            raise ValueError(f"processor option {name} must be a positive integer, not {value!r}")
        settings = replace(settings, min_pixels=value) if name == "min_pixels" else replace(settings, max_pixels=value)
    if settings.min_pixels > settings.max_pixels:
        raise ValueError(f"min_pixels {settings.min_pixels} is more than max_pixels {settings.max_pixels}")
    return settings


def _frames_per_second(options: ProcessorOptions) -> float:
    fps = dict(options).get("fps", DEFAULT_FPS)
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < float("inf"):
        raise ValueError(f"processor option fps must be a positive number, not {fps!r}")
    return float(fps)
