"""The Qwen3-VL tower against Hugging Face's dense and MoE models, at its real width and five layers."""

import copy

import pytest
import torch
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeVisionConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeVisionModel

from encoder_workers.checkpoint import Checkpoint, CheckpointError
from encoder_workers.families import qwen3_vl
from encoder_workers.families.normalize import PatchNormalizer
from encoder_workers.families.qwen_pixels import read_pixel_settings
from encoder_workers.registry import find_family, load_family
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
    "depth": 5,
    "hidden_size": 1152,
    "hidden_act": "gelu_pytorch_tanh",
    "intermediate_size": 4304,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 128,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [1, 3, 4],
}
PROCESSOR = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
GRIDS = [
    [(1, 12, 10)],
    [(1, 48, 4)],  # as high as the learned grid
    [(1, 2, 60), (1, 4, 4), (1, 16, 6)],
    [(1, 4, 4), (3, 4, 6), (1, 8, 20)],
]


def build(layout: str) -> torch.nn.Module:
    if layout == "dense":
        return Qwen3VLVisionModel._from_config(Qwen3VLVisionConfig(**VISION), attn_implementation="eager")
    return Qwen3VLMoeVisionModel._from_config(Qwen3VLMoeVisionConfig(**VISION), attn_implementation="eager")


ARCHITECTURE = {"dense": "Qwen3VLForConditionalGeneration", "moe": "Qwen3VLMoeForConditionalGeneration"}


@pytest.fixture(scope="module", params=["dense", "moe"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The reference tower, the checkpoint it was written to, and our tower from there."""
    reference = build(request.param)
    randomize(reference, seed=13)
    tensors = {f"model.visual.{name}": tensor for name, tensor in reference.state_dict().items()}
    tensors["model.language_model.embed_tokens.weight"] = torch.zeros(4, 4)
    config = {"architectures": [ARCHITECTURE[request.param]], "vision_config": VISION}
    directory = write_tower_checkpoint(tmp_path_factory.mktemp("tower"), config, tensors, PROCESSOR)
    checkpoint = Checkpoint(directory)
    family = load_family(find_family(checkpoint))
    tower = family.load_tower(checkpoint, select_ops("auto", CPU), CPU, torch.float32)
    return reference.eval(), checkpoint, tower


@pytest.fixture(scope="module")
def half_pair(pair):
    """The same in bfloat16."""
    reference, checkpoint, _ = pair
    family = load_family(find_family(checkpoint))
    tower = family.load_tower(checkpoint, select_ops("auto", CPU), CPU, torch.bfloat16)
    return copy.deepcopy(reference).bfloat16(), checkpoint, tower


def compare(pair, grids: list[tuple[int, int, int]], dtype: torch.dtype, record: Record) -> None:
    reference, checkpoint, tower = pair
    batch = [noise_rows(grid, 1536, seed) for seed, grid in enumerate(grids)]
    pixels = read_pixel_settings(checkpoint)
    normalize = PatchNormalizer(pixels.normalization, pixels.patch_width, CPU, dtype)
    rows = normalize(torch.cat([item.inputs for item in batch]))
    with torch.inference_mode():
        outputs = reference(rows, grid_thw=torch.tensor(grids))
    expected = torch.cat([outputs.pooler_output, *outputs.deepstack_features], dim=1)
    assert expected.shape[1] == tower.width == 4 * 128
    assert tower.layout == "main+deepstack3"
    levels = expected.split(128, dim=1)
    assert min((a - b).abs().max() for i, a in enumerate(levels) for b in levels[:i]) > 1
    check_accuracy(record, tower.forward(batch), expected.split([t * h * w // 4 for t, h, w in grids]))


@pytest.mark.parametrize("grids", GRIDS, ids=str)
def test_equals_the_reference(pair, grids: list[tuple[int, int, int]], record_property: Record) -> None:
    compare(pair, grids, torch.float32, record_property)


@pytest.mark.parametrize("grids", [*GRIDS[1:], [(1, 32, 30), (1, 6, 6)]], ids=str)
def test_equals_the_reference_in_bfloat16(
    half_pair, grids: list[tuple[int, int, int]], record_property: Record
) -> None:
    compare(half_pair, grids, torch.bfloat16, record_property)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_position_embeddings": 2300}, "must be a square"),
        ({"deepstack_visual_indexes": [3, 1]}, "ascending"),
        ({"deepstack_visual_indexes": [1, 5]}, "ascending"),
        ({"out_hidden_size": None}, "out_hidden_size must be an integer"),
        ({"hidden_act": "relu"}, "'relu' is not one of"),
    ],
)
def test_bad_configurations_are_named(tmp_path, change: dict[str, object], message: str) -> None:
    config = {"architectures": [ARCHITECTURE["dense"]], "vision_config": VISION | change}
    directory = write_tower_checkpoint(tmp_path, config, {"model.visual.x": torch.zeros(1)}, PROCESSOR)
    with pytest.raises(CheckpointError, match=message):
        qwen3_vl.load_tower(Checkpoint(directory), select_ops("auto", CPU), CPU, torch.float32)
