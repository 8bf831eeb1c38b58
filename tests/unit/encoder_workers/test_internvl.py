"""InternVL in both published layouts: the tower against Hugging Face's, tiles against either layout's processor."""

import copy
import random
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import InternVLConfig, InternVLModel
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from vllm.transformers_utils.processors.internvl import InternVLImageProcessor

from encoder_workers import Limits, Media, load_encoder
from encoder_workers.checkpoint import Checkpoint, CheckpointError
from encoder_workers.families import internvl
from encoder_workers.families.internvl.processor import InternVLProcessor, tile_patches
from encoder_workers.families.normalize import PatchNormalizer
from npu_kernels import select_ops
from tests.unit.encoder_workers.encoder_fixtures import (
    Record,
    check_accuracy,
    image_file,
    noise_image,
    png_header_only,
    randomize,
    write_tower_checkpoint,
)
from transfer.errors import BadMedia, LimitExceeded

CPU = torch.device("cpu")
VISION = {
    "hidden_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 448,
    "patch_size": 14,
    "hidden_act": "gelu",
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
}
OPENGVLAB = {
    "architectures": ["InternVLChatModel"],
    "vision_config": VISION | {"qkv_bias": True, "qk_normalization": False},
    "llm_config": {"hidden_size": 192},
    "downsample_ratio": 0.5,
    "ps_version": "v2",
    "select_layer": -1,
    "force_image_size": 448,
    "dynamic_image_size": True,
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 12,
    "use_thumbnail": True,
}
HF = {
    "architectures": ["InternVLForConditionalGeneration"],
    "vision_config": VISION | {"attention_bias": True, "image_size": [448, 448], "patch_size": [14, 14]},
    "text_config": {"hidden_size": 192},
    "downsample_ratio": 0.5,
}
PROCESSOR_HF = {
    "crop_to_patches": True,
    "min_patches": 1,
    "max_patches": 12,
    "size": {"height": 448, "width": 448},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "image_processor_type": "GotOcr2ImageProcessorFast",
}


def to_opengvlab(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The -hf tensors under OpenGVLab's names, written out independently of the loader."""
    out = {
        "vision_model.embeddings.class_embedding": tensors["vision_tower.embeddings.cls_token"],
        "vision_model.embeddings.position_embedding": tensors["vision_tower.embeddings.position_embeddings"],
    }
    for kind in ("weight", "bias"):
        embed = "embeddings.patch_embedding"
        out[f"vision_model.{embed}.{kind}"] = tensors[f"vision_tower.{embed}s.projection.{kind}"]
        for theirs, ours in (("layer_norm", 0), ("linear_1", 1), ("linear_2", 3)):
            out[f"mlp1.{ours}.{kind}"] = tensors[f"multi_modal_projector.{theirs}.{kind}"]
    for layer in range(VISION["num_hidden_layers"]):
        source, target = f"vision_tower.encoder.layer.{layer}.", f"vision_model.encoder.layers.{layer}."
        for i in (1, 2):
            out[f"{target}ls{i}"] = tensors[f"{source}lambda_{i}"]
        for kind in ("weight", "bias"):
            qkv = [tensors[f"{source}attention.{part}_proj.{kind}"] for part in ("q", "k", "v")]
            out[f"{target}attn.qkv.{kind}"] = torch.cat(qkv)
            out[f"{target}attn.proj.{kind}"] = tensors[f"{source}attention.projection_layer.{kind}"]
            out[f"{target}norm1.{kind}"] = tensors[f"{source}layernorm_before.{kind}"]
            out[f"{target}norm2.{kind}"] = tensors[f"{source}layernorm_after.{kind}"]
            for part in ("fc1", "fc2"):
                out[f"{target}mlp.{part}.{kind}"] = tensors[f"{source}mlp.{part}.{kind}"]
    return out


@pytest.fixture(scope="module")
def reference() -> InternVLModel:
    text = {"model_type": "qwen2", "hidden_size": 192, "intermediate_size": 64, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 16}
    vision = HF["vision_config"] | {"model_type": "internvl_vision"}
    model = InternVLModel._from_config(InternVLConfig(vision_config=vision, text_config=text))
    randomize(model, seed=17)
    return model.eval()


@pytest.fixture(scope="module", params=["opengvlab", "hf", "hf_nested"])
def checkpoint(request: pytest.FixtureRequest, reference, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    tensors = dict(reference.state_dict())
    directory = tmp_path_factory.mktemp("internvl")
    match request.param:
        case "opengvlab":
            return Checkpoint(write_tower_checkpoint(directory, OPENGVLAB, to_opengvlab(tensors), {}))
        case "hf":
            return Checkpoint(write_tower_checkpoint(directory, HF, tensors, PROCESSOR_HF))
    nested = {f"model.{name}": tensor for name, tensor in tensors.items()}
    return Checkpoint(write_tower_checkpoint(directory, HF, nested, PROCESSOR_HF))


@pytest.fixture(scope="module")
def half_reference(reference) -> InternVLModel:
    return copy.deepcopy(reference).bfloat16()


def test_tower_equals_the_reference(checkpoint: Checkpoint, reference, record_property: Record) -> None:
    compare(checkpoint, reference, torch.float32, record_property)


def test_tower_equals_the_reference_in_bfloat16(
    checkpoint: Checkpoint, half_reference, record_property: Record
) -> None:
    compare(checkpoint, half_reference, torch.bfloat16, record_property)


def compare(checkpoint: Checkpoint, reference, dtype: torch.dtype, record: Record) -> None:
    processor = internvl.load_processor(checkpoint)
    tower = internvl.load_tower(checkpoint, select_ops("auto", CPU), CPU, dtype)
    media = [
        Media("image", image_file(noise_image(*size, seed=i), "PNG")) for i, size in enumerate([(40, 80), (30, 30)])
    ]
    batch = [processor.preprocess(processor.decode(item, Limits(tokens=10**5))) for item in media]
    assert [item.grid for item in batch] == [(3, 32, 32), (1, 32, 32)]
    tiles = [
        processor_pixels(checkpoint, noise_image(40, 80, seed=0)),
        processor_pixels(checkpoint, noise_image(30, 30, seed=1)),
    ]
    with torch.inference_mode():
        expected = reference.get_image_features(torch.cat(tiles).to(dtype)).pooler_output
    assert [item.metadata.num_tokens for item in batch] == [3 * 256, 256]
    check_accuracy(record, tower.forward(batch), expected.reshape(-1, 192).split([3 * 256, 256]))


def processor_pixels(checkpoint: Checkpoint, image: Image.Image) -> torch.Tensor:
    """Tiles [N, 3, 448, 448] as the layout's own processor makes them."""
    if "llm_config" in checkpoint.config:
        processor = InternVLImageProcessor(448, 1, 12, dynamic_image_size=True, use_thumbnail=True)
        return processor(image)["pixel_values_flat"]
    settings = {key: value for key, value in PROCESSOR_HF.items() if key != "image_processor_type"}
    return GotOcr2ImageProcessor(**settings)([image], return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("size", [(480, 640), (300, 100), (448, 448), (57, 991), (1, 1)])
def test_tiles_equal_the_layouts_own_processor(checkpoint: Checkpoint, size: tuple[int, int]) -> None:
    processor = internvl.load_processor(checkpoint)
    image = noise_image(*size, seed=3)
    expected = processor_pixels(checkpoint, image)
    prepared = processor.preprocess(processor.decode(Media("image", image_file(image, "PNG")), Limits()))
    settings = processor._tiles
    values = PatchNormalizer(settings.normalization, settings.patch_width, CPU, torch.float32)(prepared.inputs)
    rows = tile_patches(expected, settings)
    assert values.shape == rows.shape
    assert (values - rows).abs().max() < 1e-6


def opengvlab_processor(tmp_path, **change: object) -> InternVLProcessor:
    directory = write_tower_checkpoint(tmp_path, OPENGVLAB | change, {"mlp1.0.weight": torch.zeros(1)}, {})
    return internvl.load_processor(Checkpoint(directory))


def hf_processor(tmp_path) -> InternVLProcessor:
    directory = write_tower_checkpoint(tmp_path, HF, {"multi_modal_projector.x": torch.zeros(1)}, PROCESSOR_HF)
    return internvl.load_processor(Checkpoint(directory))


# (height, width) -> columns x rows, tiles with thumbnail, tokens; worked out independently of this code.
@pytest.mark.parametrize(
    ("size", "tiles", "num_tokens"),
    [((224, 224), 1, 256), ((480, 640), 13, 3328), ((1080, 1920), 9, 2304), ((2160, 3840), 9, 2304)],
)
def test_golden_token_counts(tmp_path, size: tuple[int, int], tiles: int, num_tokens: int) -> None:
    metadata = opengvlab_processor(tmp_path).describe(Media("image", png_header_only(*size)), Limits())
    assert (metadata.num_tokens, metadata.array("image_num_patches").values) == (num_tokens, (tiles,))


@pytest.mark.parametrize("layout", ["opengvlab", "hf"])
def test_number_of_tiles_equals_both_processors(tmp_path, layout: str) -> None:
    ours = opengvlab_processor(tmp_path) if layout == "opengvlab" else hf_processor(tmp_path)
    hf = GotOcr2ImageProcessor(**{k: v for k, v in PROCESSOR_HF.items() if k != "image_processor_type"})
    vllm = InternVLImageProcessor(448, 1, 12, dynamic_image_size=True, use_thumbnail=True)
    draw = random.Random(4)
    for index in range(1000):
        height, width = draw.randint(1, 3000), draw.randint(1, 3000)
        described = ours.describe(Media("image", png_header_only(height, width)), Limits())
        tiles = described.num_tokens // 256
        assert tiles == hf.get_number_of_image_patches(height, width)
        if index < 12:
            small = Image.new("RGB", (width % 300 + 1, height % 300 + 1))
            counted = vllm(small)["image_num_patches"].item()
            assert ours.image_metadata(small.height, small.width).num_tokens // 256 == counted


def test_first_shuffle_version_leaves_tokens_transposed(tmp_path) -> None:
    """Against vLLM's own shuffle, which the tower's row order replaces."""
    from vllm.model_executor.models.internvl import InternVLChatModel

    image = noise_image(448, 448, seed=8)
    tiles = processor_pixels(Checkpoint(write_tower_checkpoint(tmp_path / "c", OPENGVLAB, {}, {})), image)
    for version in ("v1", "v2"):
        settings = opengvlab_processor(tmp_path / version, ps_version=version)._tiles
        patches = tiles.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).reshape(1, 32, 32, 588)
        expected = InternVLChatModel.pixel_shuffle(SimpleNamespace(ps_version=version), patches, 0.5)
        assert torch.equal(tile_patches(tiles, settings).reshape(256, 4 * 588), expected.reshape(256, 4 * 588))


def test_options_limits_and_modalities(tmp_path) -> None:
    processor = opengvlab_processor(tmp_path)
    data = png_header_only(480, 640)
    few = processor.describe(Media("image", data, (("max_dynamic_patch", 4),)), Limits())
    assert few.num_tokens <= 5 * 256
    with pytest.raises(ValueError, match="unknown processor option 'max_patches'; known: max_dynamic_patch"):
        processor.describe(Media("image", data, (("max_patches", 4),)), Limits())
    with pytest.raises(ValueError, match="from 1 to 64"):
        processor.describe(Media("image", data, (("max_dynamic_patch", 0),)), Limits())
    with pytest.raises(LimitExceeded, match="3328 tokens"):
        processor.describe(Media("image", data), Limits(tokens=3327))
    with pytest.raises(BadMedia, match="not video"):
        processor.describe(Media("video", data), Limits())
    whole = opengvlab_processor(tmp_path / "static", dynamic_image_size=False)
    assert whole.describe(Media("image", data), Limits()).num_tokens == 256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"select_layer": -2}, "select_layer must be -1"),
        ({"force_image_size": 224}, "tiles of 224 pixels for a tower of 448"),
        ({"downsample_ratio": 0.4}, "one over a whole number"),
        ({"vision_config": VISION | {"norm_type": "batch_norm"}}, "norm_type must be"),
    ],
)
def test_bad_configurations_are_named(tmp_path, change: dict[str, object], message: str) -> None:
    directory = write_tower_checkpoint(tmp_path, OPENGVLAB | change, {"mlp1.0.weight": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match=message):
        load_encoder(directory, dtype="float32")


def test_six_billion_variant_normalises_queries_and_keys(tmp_path) -> None:
    """RMSNorm blocks, query and key norms, no qkv bias: against Hugging Face's with the same switches, small."""
    vision = VISION | {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "norm_type": "rms_norm"}
    vision |= {"attention_bias": False, "use_qk_norm": True, "image_size": [56, 56], "patch_size": [14, 14]}
    text = {"model_type": "qwen2", "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 16}
    config = InternVLConfig(vision_config=vision | {"model_type": "internvl_vision"}, text_config=text)
    model = InternVLModel._from_config(config).eval()
    randomize(model, seed=23)
    processor_config = PROCESSOR_HF | {"size": {"height": 56, "width": 56}}
    directory = write_tower_checkpoint(
        tmp_path, HF | {"vision_config": vision, "text_config": text}, dict(model.state_dict()), processor_config
    )
    checkpoint = Checkpoint(directory)
    processor = internvl.load_processor(checkpoint)
    tower = internvl.load_tower(checkpoint, select_ops("auto", CPU), CPU, torch.float32)
    image = noise_image(90, 200)
    prepared = processor.preprocess(processor.decode(Media("image", image_file(image, "PNG")), Limits()))
    settings = {key: value for key, value in processor_config.items() if key != "image_processor_type"}
    pixels = GotOcr2ImageProcessor(**settings)([image], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = model.get_image_features(pixels).pooler_output
    assert (tower.forward([prepared])[0] - expected.reshape(-1, 48)).abs().max() < 1e-4
