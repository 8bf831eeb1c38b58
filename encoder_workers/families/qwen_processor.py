"""The Qwen-VL families' processor: describes, decodes and prepares images and videos."""

from __future__ import annotations

from dataclasses import asdict, replace

from encoder_workers.families.frame_sampling import Clip, whole_sequence
from encoder_workers.families.qwen_given import given_image, given_video
from encoder_workers.families.qwen_pixels import PixelSettings, image_patches, target_size
from encoder_workers.families.qwen_video import (
    SEQUENCE_FPS,
    VideoSettings,
    decode_file,
    decode_sequence,
    sample,
    video_metadata,
    video_patches,
)
from encoder_workers.frame_sequences import is_frame_sequence, read_frames
from encoder_workers.given_embeddings import GivenEmbedding
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
from encoder_workers.video_files import VideoFile, read_video_file
from transfer.errors import BadMedia, LimitExceeded
from transfer.messages import Metadata, Modality

_INTEGERS = ("max_frames", "max_pixels", "min_frames", "min_pixels")
_OPTIONS = ("fps", *_INTEGERS)
_NO_AUDIO = "this model takes images and videos, not audio"


class QwenVLProcessor:
    """Implements encoder_workers.interface.Processor.

    Options of a request: `min_pixels` and `max_pixels` replace the checkpoint's bounds; `fps` is the number of frames
    shown for each second of a video file, `min_frames` and `max_frames` bound their number. Of a sequence of frames
    all are shown, and `fps` is the rate at which they were taken.
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
                return _within(self._describe_video(media, limits)[0], limits)
            case "audio":
                raise BadMedia(_NO_AUDIO)

    def describe_given(self, modality: Modality, given: GivenEmbedding) -> ItemMetadata:
        """Raises BadMedia when the grid, or what a video's prompt is told of time, is missing or impossible."""
        match modality:
            case "image":
                return given_image(given, self._pixels)
            case "video":
                return given_video(given, self._video)
            case "audio":
                raise BadMedia(_NO_AUDIO)

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
            num_pairs=num_patches**2,
        )

    def video_metadata(self, num_frames: int, height: int, width: int, options: ProcessorOptions = ()) -> ItemMetadata:
        """The token formula for a sequence of this many frames of this size."""
        clip = whole_sequence(num_frames, _frames_per_second(options, SEQUENCE_FPS))
        return video_metadata(clip, height, width, self._video_settings(options))

    def file_metadata(self, file: VideoFile, options: ProcessorOptions = ()) -> ItemMetadata:
        """The token formula for a video file with these headers."""
        settings = self._video_settings(options)
        clip = sample(file.num_frames, file.fps, settings)
        return video_metadata(clip, file.size.height, file.size.width, settings)

    def decode(self, media: Media, limits: Limits) -> Decoded:
        if media.modality != "video":
            return DecodedImage(decode_image(media.data, limits), self.describe(media, limits))
        metadata, shown = self._describe_video(media, limits)
        grid, patch_size = _grid(_within(metadata, limits)), self._video.pixels.patch_size
        if shown is None:
            frames = decode_sequence(read_frames(media.data, limits), grid, limits, patch_size)
        else:
            frames = decode_file(media.data, *shown, grid, limits, patch_size)
        return DecodedVideo(frames, metadata)

    def preprocess(self, decoded: Decoded) -> Prepared:
        grid = _grid(decoded.metadata)
        if isinstance(decoded, DecodedVideo):
            return Prepared(video_patches(decoded.frames, self._video), grid, decoded.metadata)
        assert isinstance(decoded, DecodedImage), type(decoded)
        patch = self._pixels.patch_size
        rows = image_patches(decoded.pixels, grid[1] * patch, grid[2] * patch, self._pixels)
        return Prepared(rows, grid, decoded.metadata)

    def _describe_video(self, media: Media, limits: Limits) -> tuple[ItemMetadata, tuple[VideoFile, Clip] | None]:
        """The metadata, and of a file its headers and the frames shown."""
        if is_frame_sequence(media.data):
            sequence = read_frames(media.data, limits)
            size = sequence.size
            return self.video_metadata(len(sequence.frames), size.height, size.width, media.options), None
        settings = self._video_settings(media.options)
        file = read_video_file(media.data, limits)
        clip = sample(file.num_frames, file.fps, settings)
        if len(clip.indices) > limits.frames:
            raise LimitExceeded(
                f"{len(clip.indices)} frames of the video would be shown, more than the limit of {limits.frames}: "
                "ask for a lower fps or max_frames"
            )
        return video_metadata(clip, file.size.height, file.size.width, settings), (file, clip)

    def _video_settings(self, options: ProcessorOptions) -> VideoSettings:
        """Settings of one request."""
        given, sampling = dict(options), self._video.sampling
        pixels = _bounded(self._video.pixels, options)
        sampling = replace(
            sampling,
            fps=_frames_per_second(options, sampling.fps),
            min_frames=int(given.get("min_frames", sampling.min_frames)),
            max_frames=int(given.get("max_frames", sampling.max_frames)),
        )
        return replace(self._video, pixels=pixels, sampling=sampling)


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
        if name in _INTEGERS and (type(value) is not int or value < 1):
            raise ValueError(f"processor option {name} must be a positive integer, not {value!r}")
        if name == "min_pixels":
            settings = replace(settings, min_pixels=int(value))
        elif name == "max_pixels":
            settings = replace(settings, max_pixels=int(value))
    if settings.min_pixels > settings.max_pixels:
        raise ValueError(f"min_pixels {settings.min_pixels} is more than max_pixels {settings.max_pixels}")
    return settings


def _frames_per_second(options: ProcessorOptions, default: float) -> float:
    fps = dict(options).get("fps", default)
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < float("inf"):
        raise ValueError(f"processor option fps must be a positive number, not {fps!r}")
    return float(fps)
