"""The Qwen2-VL tower against Hugging Face's, at its real width and four layers, both loaded from the same file."""

import copy

import pytest
import torch
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from encoder_workers.checkpoint import Checkpoint
from encoder_workers.families import qwen2_vl
from encoder_workers.families.normalize import PatchNormalizer
from encoder_workers.families.qwen_pixels import read_pixel_settings
from npu_kernels import select_ops
from tests.unit.encoder_workers.encoder_fixtures import (
    Record,
    check_accuracy,
    noise_rows,
    randomize,
    write_tower_checkpoint,
)

CPU = torch.device("cpu")
# The published file's fields; hidden_size is the language model's width here, reduced.
VISION = {
    "depth": 4,
    "embed_dim": 1280,
    "mlp_ratio": 4,
    "num_heads": 16,
    "in_chans": 3,
    "hidden_size": 256,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
}
PROCESSOR = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}


@pytest.fixture(scope="module")
def reference() -> Qwen2VisionTransformerPretrainedModel:
    config = Qwen2VLVisionConfig(depth=4, embed_dim=1280, hidden_size=256)
    model = Qwen2VisionTransformerPretrainedModel._from_config(config, attn_implementation="eager")
    randomize(model, seed=11)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(reference, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    tensors = {f"visual.{name}": tensor for name, tensor in reference.state_dict().items()}
    config = {"architectures": ["Qwen2VLForConditionalGeneration"], "vision_config": VISION}
    return Checkpoint(write_tower_checkpoint(tmp_path_factory.mktemp("tower"), config, tensors, PROCESSOR))


@pytest.fixture(scope="module")
def tower(checkpoint: Checkpoint):
    return qwen2_vl.load_tower(checkpoint, select_ops("auto", CPU), CPU, torch.float32)


@pytest.fixture(scope="module")
def half_tower(checkpoint: Checkpoint):
    return qwen2_vl.load_tower(checkpoint, select_ops("auto", CPU), CPU, torch.bfloat16)


@pytest.fixture(scope="module")
def half_reference(reference) -> Qwen2VisionTransformerPretrainedModel:
    return copy.deepcopy(reference).bfloat16()


GRIDS = [[(1, 16, 12)], [(1, 2, 36), (1, 10, 14), (1, 4, 4)], [(1, 4, 4), (3, 6, 8), (1, 8, 10)]]


def compare(tower, reference, checkpoint: Checkpoint, grids, dtype: torch.dtype, record: Record) -> None:
    batch = [noise_rows(grid, 1176, seed) for seed, grid in enumerate(grids)]
    pixels = read_pixel_settings(checkpoint)
    normalize = PatchNormalizer(pixels.normalization, pixels.patch_width, CPU, dtype)
    rows = normalize(torch.cat([item.inputs for item in batch]))
    with torch.inference_mode():
        expected = reference(rows, grid_thw=torch.tensor(grids)).pooler_output
    check_accuracy(record, tower.forward(batch), expected.split([t * h * w // 4 for t, h, w in grids]))


@pytest.mark.parametrize("grids", GRIDS, ids=str)
def test_equals_the_reference(tower, reference, checkpoint: Checkpoint, grids, record_property: Record) -> None:
    compare(tower, reference, checkpoint, grids, torch.float32, record_property)
    assert (tower.width, tower.layout) == (256, "main")


@pytest.mark.parametrize("grids", [*GRIDS, [(1, 32, 30), (1, 6, 6)]], ids=str)
def test_equals_the_reference_in_bfloat16(
    half_tower, half_reference, checkpoint: Checkpoint, grids, record_property: Record
) -> None:
    compare(half_tower, half_reference, checkpoint, grids, torch.bfloat16, record_property)


def test_frames_of_a_video_do_not_see_each_other(tower) -> None:
    clip = noise_rows((2, 8, 8), 1176, seed=5)
    changed = noise_rows((2, 8, 8), 1176, seed=5)
    changed.inputs[64:] = 0
    left, right = tower.forward([clip])[0], tower.forward([changed])[0]
    assert (left[:16] - right[:16]).abs().max() < 1e-5
    assert (left[16:] - right[16:]).abs().max() > 0.1
