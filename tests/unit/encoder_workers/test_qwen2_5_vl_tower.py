"""The Qwen2.5-VL tower against Hugging Face's, at its real width and four layers, both loaded from the same file."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.vision_utils import get_vision_window_index

from encoder_workers import Prepared
from encoder_workers.checkpoint import Checkpoint
from encoder_workers.families import qwen2_5_vl
from encoder_workers.families.normalize import PatchNormalizer
from encoder_workers.families.qwen2_5_vl.windows import window_order
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
VISION = {
    "model_type": "qwen2_5_vl",
    "depth": 4,
    "hidden_size": 1280,
    "num_heads": 16,
    "intermediate_size": 3420,
    "out_hidden_size": 256,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [1, 3],
    "in_channels": 3,
    "hidden_act": "silu",
    "tokens_per_second": 2,
}
PROCESSOR = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}

# Height and width in patches; a window is 8 x 8 patches.
DIVISIBLE, CUT_RIGHT, CUT_BOTH, SMALL, THIN = (1, 16, 16), (1, 8, 12), (1, 18, 14), (1, 4, 4), (1, 2, 36)
CLIP = (3, 8, 10)


@pytest.fixture(scope="module")
def reference() -> Qwen2_5_VisionTransformerPretrainedModel:
    settings = {key: value for key, value in VISION.items() if key != "model_type"}
    model = Qwen2_5_VisionTransformerPretrainedModel._from_config(
        Qwen2_5_VLVisionConfig(**settings), attn_implementation="eager"
    )
    randomize(model, seed=7)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(reference, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    tensors = {f"visual.{name}": tensor for name, tensor in reference.state_dict().items()}
    config = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": VISION}
    return Checkpoint(write_tower_checkpoint(tmp_path_factory.mktemp("tower"), config, tensors, PROCESSOR))


@pytest.fixture(scope="module")
def tower(checkpoint: Checkpoint):
    return qwen2_5_vl.load_tower(checkpoint, select_ops("auto", CPU), CPU, torch.float32)


def prepared(grid: tuple[int, int, int], seed: int) -> Prepared:
    return noise_rows(grid, 1176, seed)


def compare(tower, reference, checkpoint: Checkpoint, grids, dtype: torch.dtype, record: Record) -> None:
    batch = [prepared(grid, seed) for seed, grid in enumerate(grids)]
    pixels = read_pixel_settings(checkpoint)
    normalize = PatchNormalizer(pixels.normalization, pixels.patch_width, CPU, dtype)
    rows = normalize(torch.cat([item.inputs for item in batch]))
    with torch.inference_mode():
        expected = reference(rows, grid_thw=torch.tensor(grids)).pooler_output
    check_accuracy(record, tower.forward(batch), expected.split([t * h * w // 4 for t, h, w in grids]))


@pytest.mark.parametrize(
    "grids",
    [
        [DIVISIBLE],
        [CUT_RIGHT],
        [CUT_BOTH],
        [SMALL],
        [THIN],
        [CLIP],
        [DIVISIBLE, DIVISIBLE],
        [CUT_BOTH, SMALL, DIVISIBLE, THIN],
        [SMALL, CLIP, CUT_RIGHT],
    ],
    ids=str,
)
def test_equals_the_reference(tower, reference, checkpoint: Checkpoint, grids, record_property: Record) -> None:
    compare(tower, reference, checkpoint, grids, torch.float32, record_property)


@pytest.fixture(scope="module")
def half_tower(checkpoint: Checkpoint):
    return qwen2_5_vl.load_tower(checkpoint, select_ops("auto", CPU), CPU, torch.bfloat16)


@pytest.fixture(scope="module")
def half_reference(reference) -> Qwen2_5_VisionTransformerPretrainedModel:
    return copy.deepcopy(reference).bfloat16()


@pytest.mark.parametrize(
    "grids", [[CUT_BOTH], [CUT_BOTH, SMALL, DIVISIBLE, THIN], [SMALL, CLIP, CUT_RIGHT], [(1, 32, 30), SMALL]], ids=str
)
def test_equals_the_reference_in_bfloat16(
    half_tower, half_reference, checkpoint: Checkpoint, grids, record_property: Record
) -> None:
    compare(half_tower, half_reference, checkpoint, grids, torch.bfloat16, record_property)


def test_neighbours_in_a_pass_do_not_change_an_item(tower) -> None:
    alone = tower.forward([prepared(CUT_BOTH, 3)])[0]
    packed = tower.forward([prepared(SMALL, 1), prepared(CUT_BOTH, 3), prepared(CUT_BOTH, 4)])[1]
    assert (alone - packed).abs().max() < 1e-5


def test_window_and_full_layers_both_matter(tower, checkpoint: Checkpoint) -> None:
    """Guards the parity tests above: with every layer windowed, or none, the outcome is visibly another."""
    item = prepared(DIVISIBLE, 0)
    right = tower.forward([item])[0]
    for layers in ((), (0, 1, 2, 3), (0, 2)):
        other = qwen2_5_vl.load_tower(checkpoint, select_ops("auto", CPU), CPU, torch.float32)
        other._config = dataclasses.replace(other._config, full_attention_layers=layers)
        assert (other.forward([item])[0] - right).abs().max() > 1e-2


@pytest.mark.parametrize("grid", [DIVISIBLE, CUT_RIGHT, CUT_BOTH, SMALL, THIN, CLIP, (2, 10, 22), (1, 8, 8)], ids=str)
def test_window_order_equals_the_reference(grid: tuple[int, int, int]) -> None:
    index, cumulative = get_vision_window_index(
        torch.tensor([grid]), spatial_merge_size=2, window_size=112, patch_size=14
    )
    order = window_order(grid, merge_size=2, window=4)
    assert torch.equal(order.to_windows, index)
    assert list(order.window_lengths) == [length for length in cumulative.diff().tolist() if length]
    assert torch.equal(order.to_windows[order.from_windows], torch.arange(len(index)))


def test_weights_of_either_prefix_and_in_several_files(reference, tower, tmp_path: Path) -> None:
    tensors = {f"model.visual.{name}": tensor for name, tensor in reference.state_dict().items()}
    config = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": VISION}
    directory = write_tower_checkpoint(tmp_path, config, tensors, PROCESSOR, num_files=3)
    other = qwen2_5_vl.load_tower(Checkpoint(directory), select_ops("auto", CPU), CPU, torch.float32)
    item = prepared(SMALL, 0)
    assert torch.equal(other.forward([item])[0], tower.forward([item])[0])
