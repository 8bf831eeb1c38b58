"""load_encoder end to end on a small whole checkpoint: results, failures alone, revisions, and what it reads."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from configs import EncoderConfig
from encoder_workers import CheckpointError, Embedding, Encoder, ItemMetadata, Limits, Media, load_encoder
from encoder_workers.checkpoint import Checkpoint
from encoder_workers.planner import plan_passes
from tests.unit.encoder_workers.encoder_fixtures import image_file, noise_image
from transfer.errors import BadMedia, LimitExceeded


@pytest.fixture(scope="module")
def encoder(tiny_qwen2_5_vl: Path) -> Encoder:
    return load_encoder(tiny_qwen2_5_vl, dtype="float32")


def image_media(height: int, width: int, seed: int = 0) -> Media:
    return Media("image", image_file(noise_image(height, width, seed=seed), "PNG"))


def test_files_to_embeddings_equal_the_whole_reference(encoder: Encoder, tiny_qwen2_5_vl: Path) -> None:
    sizes = [(300, 400), (900, 1300), (64, 64), (30, 500)]
    media = [image_media(*size, seed=index) for index, size in enumerate(sizes)]
    processor = AutoProcessor.from_pretrained(tiny_qwen2_5_vl)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_qwen2_5_vl, dtype=torch.float32)
    images: list[Image.Image] = [noise_image(*size, seed=index) for index, size in enumerate(sizes)]
    inputs = processor.image_processor(images, return_tensors="pt")
    with torch.inference_mode():
        expected = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
    embeddings = [result for result in encoder.encode(media) if isinstance(result, Embedding)]
    assert [embedding.metadata for embedding in embeddings] == encoder.describe(media)
    got = torch.cat([embedding.tensor for embedding in embeddings])
    assert got.shape == expected.shape
    # This checkpoint's gain of 2 makes values of order ten: the bound is relative to them.
    assert (got - expected).abs().max() < 2e-5 * expected.abs().max()


def test_a_bad_item_fails_alone(encoder: Encoder) -> None:
    good, other = image_media(60, 80), image_media(90, 70, seed=1)
    truncated = Media("image", good.data[: len(good.data) // 2])
    media = [good, Media("image", b"junk"), other, truncated, Media("audio", b"RIFF")]
    described, encoded = encoder.describe(media), encoder.encode(media)
    assert [type(result) for result in described] == [ItemMetadata, BadMedia, ItemMetadata, ItemMetadata, BadMedia]
    assert [type(result) for result in encoded] == [Embedding, BadMedia, Embedding, BadMedia, BadMedia]
    alone = encoder.encode([other])[0]
    assert isinstance(encoded[2], Embedding) and isinstance(alone, Embedding)
    assert (encoded[2].tensor - alone.tensor).abs().max() < 1e-4


def test_limits_hold_at_both_doors(tiny_qwen2_5_vl: Path) -> None:
    strict = load_encoder(tiny_qwen2_5_vl, dtype="float32", limits=Limits(pixels=5000))
    results = [*strict.describe([image_media(60, 90)]), *strict.encode([image_media(60, 90)])]
    assert [type(result) for result in results] == [LimitExceeded, LimitExceeded]


def test_items_are_cut_into_passes(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    media = [image_media(60 + 10 * index, 80, seed=index) for index in range(5)]
    expected = encoder.encode(media)
    sizes: list[int] = []
    forward = encoder.forward
    monkeypatch.setattr("encoder_workers.encoder.MAX_PATCHES_PER_PASS", 60)
    monkeypatch.setattr(encoder, "forward", lambda batch: (sizes.append(len(batch)), forward(batch))[1])
    got = encoder.encode(media)
    assert len(sizes) > 1 and sum(sizes) == 5
    for left, right in zip(got, expected, strict=True):
        assert isinstance(left, Embedding) and isinstance(right, Embedding)
        assert left.metadata == right.metadata
        assert (left.tensor - right.tensor).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("costs", "passes"),
    [
        ([], []),
        ([3, 3, 3], [[0, 1, 2]]),
        ([6, 5, 4, 1], [[0], [1, 2, 3]]),
        ([20, 1, 20], [[0], [1], [2]]),
    ],
)
def test_plan(costs: list[int], passes: list[list[int]]) -> None:
    assert plan_passes(costs, 10) == passes


def test_closed_and_refused_arguments(tiny_qwen2_5_vl: Path) -> None:
    encoder = load_encoder(tiny_qwen2_5_vl, dtype=torch.bfloat16)
    assert (encoder.width, encoder.layout, encoder.dtype) == (128, "main", torch.bfloat16)
    assert encoder.modalities == ("image", "video")
    encoder.close()
    encoder.close()
    with pytest.raises(ValueError, match="closed"):
        encoder.encode([image_media(60, 80)])
    with pytest.raises(ValueError, match="ranks must be at least 1"):
        load_encoder(tiny_qwen2_5_vl, dtype="float32", ranks=0)
    with pytest.raises(ValueError, match="unsupported dtype"):
        load_encoder(tiny_qwen2_5_vl, dtype="float8")
    with pytest.raises(ValueError, match="unknown ops backend"):
        load_encoder(tiny_qwen2_5_vl, dtype="float32", ops="quick")
    for refused in ({"ranks": 2}, {"ops": "torch"}):
        with pytest.raises(ValueError, match="vLLM's encoder runs in one process"):
            load_encoder(tiny_qwen2_5_vl, dtype="float32", engine="vllm", **refused)  # type: ignore[arg-type]
        settings = {"engine": "vllm", "ranks_per_replica": refused.get("ranks", 1), "ops": refused.get("ops", "auto")}
        with pytest.raises(ValueError, match="leave out ranks_per_replica and ops"):
            EncoderConfig.model_validate(settings)


def test_no_autograd_state_is_left(encoder: Encoder) -> None:
    (result,) = encoder.encode([image_media(60, 80)])
    assert isinstance(result, Embedding)
    assert result.tensor.is_inference() and not result.tensor.requires_grad


def rewrite(source: Path, target: Path, change) -> Path:
    """A copy of the checkpoint with its tensors changed."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_revision_follows_tower_weights_and_settings_alone(tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    def revision(model: Path) -> str:
        return load_encoder(model, dtype="float32").revision

    base = revision(tiny_qwen2_5_vl)
    assert revision(rewrite(tiny_qwen2_5_vl, tmp_path / "copy", lambda tensors: None)) == base
    language = rewrite(tiny_qwen2_5_vl, tmp_path / "language", lambda t: t["model.norm.weight"].mul_(2))
    assert revision(language) == base
    tower = rewrite(tiny_qwen2_5_vl, tmp_path / "tower", lambda t: t["visual.blocks.2.norm1.weight"].mul_(2))
    assert revision(tower) != base
    settings = rewrite(tiny_qwen2_5_vl, tmp_path / "settings", lambda tensors: None)
    path = settings / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_pixels": 28 * 28 * 128}))
    assert revision(settings) != base


def test_reads_only_the_tower(tiny_qwen2_5_vl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    tensors = Checkpoint.tensors

    def recorded(self, names):
        for name, tensor in tensors(self, names):
            read.append(name)
            yield name, tensor

    monkeypatch.setattr(Checkpoint, "tensors", recorded)
    load_encoder(tiny_qwen2_5_vl, dtype="float32")
    with safe_open(tiny_qwen2_5_vl / "model.safetensors", "pt") as weights:
        tower = {name for name in weights.keys() if name.startswith("visual.")}  # noqa: SIM118
        assert len(tower) < len(list(weights.keys()))
    assert set(read) == tower and len(read) == len(tower)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("visual.blocks.1.mlp.up_proj.bias"), r"missing visual\.blocks\.1\.mlp\.up_proj\.bias"),
        (lambda t: t.update({"visual.extra": torch.zeros(1)}), r"unexpected visual\.extra"),
        (
            lambda t: t.update({"visual.blocks.0.norm1.weight": torch.zeros(64)}),
            r"visual\.blocks\.0\.norm1\.weight: shape \[64\] .* asks for \[128\]",
        ),
        (lambda t: [t.pop(name) for name in list(t) if name.startswith("visual.")], "no encoder weights under visual"),
    ],
)
def test_weights_that_do_not_fit_are_named(tiny_qwen2_5_vl: Path, tmp_path: Path, change, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_encoder(rewrite(tiny_qwen2_5_vl, tmp_path / "broken", change), dtype="float32")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "no native encoder .*Llama"),
        ("config.json", {"vision_config": None}, "no section 'vision_config'"),
        ("config.json", {"vision_config": {"depth": "4"}}, "depth must be an integer, not '4'"),
        ("preprocessor_config.json", {"do_resize": False}, "do_resize is false"),
        ("preprocessor_config.json", {"resample": 2}, "only bicubic"),
        ("preprocessor_config.json", {"patch_size": 16}, "patch_size and merge_size differ"),
        ("preprocessor_config.json", {"image_std": [1.0, 0.0, 1.0]}, "none of them 0"),
    ],
)
def test_configuration_that_cannot_be_used_is_named(
    tiny_qwen2_5_vl: Path, tmp_path: Path, file: str, change: dict[str, object], message: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_qwen2_5_vl, model)
    (model / file).write_text(json.dumps(json.loads((model / file).read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        load_encoder(model, dtype="float32")


def test_absent_checkpoints_are_told(tmp_path: Path, tiny_qwen2_5_vl: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_encoder(tmp_path, dtype="float32")
    with pytest.raises(CheckpointError, match="neither a directory here nor a repository"):
        load_encoder(tmp_path / "nowhere", dtype="float32")
    model = tmp_path / "model"
    shutil.copytree(tiny_qwen2_5_vl, model)
    (model / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_encoder(model, dtype="float32")
