"""Video files against vLLM's loaders and Hugging Face's processors: headers, frames, times; and bad files."""

from __future__ import annotations

import io
import random
import struct

import av
import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata
from vllm.multimodal.video import Qwen2VLVideoBackend, Qwen3VLVideoBackend
from vllm.multimodal.video_decoders import VideoSourceMetadata, VideoTargetMetadata

from encoder_workers import Limits, Media
from encoder_workers.families.frame_sampling import Sampling, sample_evenly, sample_in_steps
from encoder_workers.video_files import decode_frames_at, read_video_file
from tests.sounds_and_clips import clip, sound
from tests.unit.encoder_workers.test_qwen_video import pair
from transfer.errors import BadMedia, LimitExceeded

FILES = {
    "h264-mp4": ("libx264", "mp4", 24),
    "mpeg4-mp4": ("mpeg4", "mp4", 30),
    "h264-mkv": ("libx264", "matroska", 25),
    "vp9-webm": ("libvpx-vp9", "webm", 10),
    "mjpeg-avi": ("mjpeg", "avi", 15),
}
SHAPE = (37, 98, 142)


@pytest.fixture(scope="module", params=sorted(FILES))
def file(request: pytest.FixtureRequest) -> bytes:
    codec, container, fps = FILES[request.param]
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    return clip(*SHAPE, fps=fps, codec=codec, container=container, pixel_format=pixel_format)


@pytest.mark.parametrize("loader", [Qwen2VLVideoBackend, Qwen3VLVideoBackend])
@pytest.mark.parametrize("fps", [2.0, 7.0])
def test_frames_and_headers_equal_vllm_s(file: bytes, loader, fps: float) -> None:
    expected, theirs = loader.load_bytes(file, fps=fps)
    ours = read_video_file(file, Limits())
    assert (ours.num_frames, ours.fps) == (theirs["total_num_frames"], theirs["fps"]) and ours.num_frames == SHAPE[0]
    assert (ours.size.height, ours.size.width) == SHAPE[1:]
    sampling = Sampling(fps=fps)
    if loader is Qwen3VLVideoBackend:
        shown = sample_evenly(ours.num_frames, ours.fps, sampling)
    else:
        shown = sample_in_steps(ours.num_frames, ours.fps, sampling, 2)
    assert list(shown.indices) == theirs["frames_indices"]
    frames = torch.stack(list(decode_frames_at(file, ours, shown.indices, Limits())))
    assert np.array_equal(frames.numpy(), expected)


@pytest.mark.parametrize("style", ["qwen2_5_vl", "qwen3_vl"])
def test_rows_and_times_equal_the_reference(file: bytes, style) -> None:
    ours, theirs, pixels = pair(style, 3136, 200704)
    loader = Qwen3VLVideoBackend if style == "qwen3_vl" else Qwen2VLVideoBackend
    frames, loaded = loader.load_bytes(file, fps=3)
    expected = theirs(videos=[frames], return_tensors="pt")
    media = Media("video", file, (("fps", 3),))
    prepared = ours.preprocess(ours.decode(media, Limits()))
    assert ours.describe(media, Limits()) == prepared.metadata
    assert list(prepared.grid) == expected["video_grid_thw"][0].tolist()
    mean, std = (
        torch.tensor(values).repeat_interleave(pixels.patch_width // 3) for values in ours_normalization(pixels)
    )
    values = (prepared.inputs / 255 - mean) / std
    assert (values - expected["pixel_values_videos"]).abs().max() < 1e-5
    metadata = VideoMetadata(loaded["total_num_frames"], loaded["fps"], frames_indices=loaded["frames_indices"])
    if style == "qwen2_5_vl":
        assert prepared.metadata.array("second_per_grid_ts").values == pytest.approx([2 / metadata.sampled_fps])
    else:
        times = [*metadata.timestamps, *metadata.timestamps[-1:] * (len(metadata.timestamps) % 2)]
        middle = [(first + second) / 2 for first, second in zip(times[::2], times[1::2], strict=True)]
        assert prepared.metadata.array("timestamps").values == pytest.approx(middle)


def ours_normalization(pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return pixels.normalization.mean, pixels.normalization.std


def test_thousand_lengths_are_sampled_as_the_references_do() -> None:
    draw = random.Random(11)
    qwen2, qwen3 = Qwen2VLVideoProcessor(), Qwen3VLVideoProcessor()
    for _ in range(1000):
        total, rate = draw.randint(2, 4000), draw.choice([10.0, 12.5, 23.976, 24.0, 25.0, 29.97, 30.0, 59.94, 60.0])
        sampling = Sampling(fps=draw.choice([0.5, 1.0, 2.0, 3.3, 10.0, 24.0]))
        metadata = VideoMetadata(total_num_frames=total, fps=rate)
        source = VideoSourceMetadata(total, rate, total / rate)
        target = VideoTargetMetadata(-1, sampling.fps, 300)
        even = sample_evenly(total, rate, sampling).indices
        assert list(even) == qwen3.sample_frames(metadata, fps=sampling.fps).tolist()
        assert list(even) == Qwen3VLVideoBackend.compute_frames_index_to_sample(source, target)
        steps = sample_in_steps(total, rate, sampling, 2).indices
        assert list(steps) == Qwen2VLVideoBackend.compute_frames_index_to_sample(source, target)
        theirs = qwen2.sample_frames(metadata, fps=sampling.fps).clamp(max=total - 1).tolist()
        assert list(steps) == theirs


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_files_are_shown_upright(degrees: int) -> None:
    """As telephones make them; vLLM's loader turns them too."""
    turned = turn(clip(8, 64, 96), degrees)
    expected, _ = Qwen2VLVideoBackend.load_bytes(turned, fps=24)
    ours = read_video_file(turned, Limits())
    assert ours.rotation == degrees
    assert (ours.size.height, ours.size.width) == expected.shape[1:3] == ((96, 64) if degrees != 180 else (64, 96))
    frames = torch.stack(list(decode_frames_at(turned, ours, range(8), Limits())))
    assert np.array_equal(frames.numpy(), expected)


def turn(file: bytes, degrees: int) -> bytes:
    """The MP4 with another matrix in its track header."""
    across = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    start = file.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * 65536 for value in across)
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return file[:start] + matrix + file[start + len(matrix) :]


def test_bad_files_are_named() -> None:
    ours = pair("qwen3_vl", 3136, 200704)[0]
    good = clip(30, 64, 96)
    for data, limits, kind, message in (
        (b"\x00" * 200, Limits(), BadMedia, "damaged or in no known format"),
        (good[: len(good) // 2], Limits(), BadMedia, "damaged or in no known format"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", Limits(), BadMedia, "damaged or in no known format"),
        (sound(0.5), Limits(), BadMedia, "damaged or in no known format"),
        (good, Limits(pixels=64 * 95), LimitExceeded, "96x64, 6144 pixels, more than the limit of 6080"),
        (good, Limits(video_s=1.0), LimitExceeded, r"lasts 1.2 s, more than the limit of 1 s"),
        (good, Limits(frames=3), LimitExceeded, "4 frames of the video would be shown, more than the limit of 3"),
        (good, Limits(tokens=3), LimitExceeded, "the video would take"),
        (good, Limits(item_bytes=100), LimitExceeded, "more than the limit of 100"),
        (clip(30, 64, 96, fps=1000), Limits(), LimitExceeded, "1000 frames a second, more than 240"),
        (audio_only(), Limits(), BadMedia, "no video track"),
    ):
        with pytest.raises(kind, match=message):
            ours.describe(Media("video", data), limits)
    for option in ("fps", "min_frames", "max_frames"):
        with pytest.raises(ValueError, match=f"processor option {option} must be a positive"):
            ours.describe(Media("video", good, ((option, -1),)), Limits())
    # Damage that headers cannot tell of is found when decoding.
    hollow = Media("video", without_pictures(good))
    assert ours.describe(hollow, Limits()) == ours.describe(Media("video", good), Limits())
    with pytest.raises(BadMedia, match=r"damaged|data ends before"):
        ours.decode(hollow, Limits())


def audio_only() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def without_pictures(file: bytes) -> bytes:
    """The MP4 with all its pictures' data zeroed: its header promises frames that cannot be decoded."""
    start = file.index(b"mdat") + 4
    end = file.index(b"moov") - 4 if file.index(b"moov") > start else len(file)
    return file[:start] + bytes(end - start) + file[end:]
