"""Videos of the Qwen-VL families against Hugging Face's video processors: grids, pixel values, times."""

import base64
import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

from encoder_workers import Embedding, ItemMetadata, Limits, Media, load_encoder
from encoder_workers.families.normalize import Normalization, PatchNormalizer
from encoder_workers.families.qwen_pixels import PixelSettings
from encoder_workers.families.qwen_processor import QwenVLProcessor
from encoder_workers.families.qwen_video import VideoSettings, VideoStyle
from tests.unit.encoder_workers.encoder_fixtures import image_file, noise_image
from transfer.errors import BadMedia, LimitExceeded

CPU = torch.device("cpu")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def video(num_frames: int, height: int, width: int, *options: tuple[str, float]) -> Media:
    frames = [image_file(noise_image(height, width, seed=seed), "JPEG", quality=80) for seed in range(num_frames)]
    return Media("video", b",".join(base64.b64encode(frame) for frame in frames), options)


def pair(style: VideoStyle, min_pixels: int, max_pixels: int):
    """Our processor and the reference with the same settings."""
    patch_size = 16 if style == "qwen3_vl" else 14
    pixels = PixelSettings(patch_size, 2, 2, min_pixels, max_pixels, Normalization(MEAN, STD))
    kind = Qwen3VLVideoProcessor if style == "qwen3_vl" else Qwen2VLVideoProcessor
    theirs = kind(
        size={"shortest_edge": min_pixels, "longest_edge": max_pixels},
        patch_size=patch_size,
        image_mean=list(MEAN),
        image_std=list(STD),
        do_sample_frames=False,
    )
    return QwenVLProcessor(pixels, VideoSettings(style, pixels)), theirs, pixels


@pytest.mark.parametrize(("style", "bounds"), [("qwen2_5_vl", (3136, 50176)), ("qwen3_vl", (4096, 200704))])
@pytest.mark.parametrize("shape", [(2, 60, 90), (5, 100, 70), (4, 30, 300), (7, 33, 57), (2, 20, 20)], ids=str)
def test_rows_are_bit_equal_to_the_reference(style: VideoStyle, bounds: tuple[int, int], shape) -> None:
    ours, theirs, pixels = pair(style, *bounds)
    media = video(*shape)
    # The frames as a colocated engine would load them.
    loaded, _ = VideoMediaIO(ImageMediaIO(), num_frames=-1).load_base64("video/jpeg", media.data.decode()).media
    assert loaded.shape == (*shape, 3)
    expected = theirs(videos=[loaded], return_tensors="pt")
    prepared = ours.preprocess(ours.decode(media, Limits()))
    assert list(prepared.grid) == expected["video_grid_thw"][0].tolist()
    values = PatchNormalizer(pixels.normalization, pixels.patch_width, CPU, torch.float32)(prepared.inputs)
    assert torch.equal(values, expected["pixel_values_videos"])
    assert ours.describe(media, Limits()) == prepared.metadata


@pytest.mark.parametrize(("style", "bounds"), [("qwen2_vl", (3136, 602112)), ("qwen3_vl", (4096, 25165824))])
def test_token_formula_equals_the_reference(style: VideoStyle, bounds: tuple[int, int]) -> None:
    ours, theirs, _ = pair(style, *bounds)
    draw = random.Random(9)
    compared = 0
    for _ in range(1000):
        shape = (draw.randint(2, 200), draw.randint(1, 1200), draw.randint(1, 1200))
        try:
            expected = theirs.get_num_of_video_patches(*shape, {})
        except ValueError:
            with pytest.raises(BadMedia, match="200 times"):
                ours.video_metadata(*shape)
            continue
        compared += 1
        assert ours.video_metadata(*shape).num_patches == expected
    assert compared > 900


def test_times_of_each_family() -> None:
    assert pair("qwen2_vl", 3136, 50176)[0].video_metadata(4, 56, 56).prompt[0].values == (2, 4, 4)
    names = [item.name for item in pair("qwen2_vl", 3136, 50176)[0].video_metadata(4, 56, 56).prompt]
    assert names == ["video_grid_thw"]
    per_step = pair("qwen2_5_vl", 3136, 50176)[0].video_metadata(4, 56, 56, (("fps", 4),))
    assert per_step.array("second_per_grid_ts").values == (0.5,)
    stamped = pair("qwen3_vl", 3136, 50176)[0].video_metadata(5, 64, 64, (("fps", 2.0),))
    assert stamped.array("timestamps").values == (0.25, 1.25, 2.0)
    assert stamped.array("video_grid_thw").values[0] == 3


def test_encoder_takes_videos_and_images_together(tiny_qwen2_5_vl) -> None:
    encoder = load_encoder(tiny_qwen2_5_vl, dtype="float32")
    image = Media("image", image_file(noise_image(60, 80), "PNG"))
    clip = video(3, 60, 80)
    together, alone = encoder.encode([image, clip]), encoder.encode([clip])
    assert isinstance(together[1], Embedding) and isinstance(alone[0], Embedding)
    assert together[1].metadata.modality == "video"
    assert (together[1].tensor - alone[0].tensor).abs().max() < 1e-4
    described = encoder.describe([clip])[0]
    assert isinstance(described, ItemMetadata)
    assert alone[0].tensor.shape == (described.num_tokens, 128)


def test_bad_videos_are_named() -> None:
    ours = pair("qwen3_vl", 3136, 50176)[0]
    good = base64.b64encode(image_file(noise_image(40, 40), "JPEG"))
    other = base64.b64encode(image_file(noise_image(40, 44), "JPEG"))
    mp4 = b"\x00\x00\x00\x18ftypmp42" + bytes(64)
    for data, message in (
        (b"", "empty"),
        (mp4, "damaged or in no known format"),
        (good + b",????", "part 1 of 2 is not base64"),
        (good, "no fewer than 2"),
        (good + b"," + other, "frame 1 of the video is 44x40, frame 0 40x40"),
        (good + b"," + base64.b64encode(b"junk"), "frame 1 of the video: the data is not an image"),
    ):
        with pytest.raises(BadMedia, match=message):
            ours.describe(Media("video", data), Limits())
    with pytest.raises(LimitExceeded, match="more frames than the limit of 2"):
        ours.describe(Media("video", b",".join([good] * 3)), Limits(frames=2))
    truncated = base64.b64encode(base64.b64decode(good)[:200])
    with pytest.raises(BadMedia, match="frame 1 of the video: "):
        ours.decode(Media("video", good + b"," + truncated), Limits())
    with pytest.raises(ValueError, match="fps must be a positive number"):
        ours.describe(Media("video", good + b"," + good, (("fps", 0),)), Limits())


def test_frames_keep_their_order() -> None:
    ours, _, pixels = pair("qwen2_vl", 3136, 50176)
    frames = [Image.new("RGB", (56, 56), (shade, shade, shade)) for shade in (0, 80, 160, 240)]
    files = []
    for frame in frames:
        out = io.BytesIO()
        frame.save(out, "PNG")
        files.append(base64.b64encode(out.getvalue()))
    rows = ours.preprocess(ours.decode(Media("video", b",".join(files)), Limits())).inputs
    by_step = rows.reshape(2, 16, 3, 2, pixels.patch_size**2)
    assert np.array_equal(by_step.float().mean((1, 2, 4)).numpy(), [[0, 80], [160, 240]])
