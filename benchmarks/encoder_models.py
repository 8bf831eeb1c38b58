"""Towers at real width and reduced depth for the encoder benchmark: checkpoints, items, Hugging Face's own."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import InternVLConfig, InternVLModel, Qwen2AudioConfig, Qwen2AudioModel
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from encoder_workers import Media, Prepared

CASES = ("1080p", "4x448p", "30s")
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_PATCHES = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2} | HALF
_TEXT = {"model_type": "qwen2", "hidden_size": 4096, "intermediate_size": 64, "num_hidden_layers": 1}
_TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 16}
Batch = Sequence[Prepared]


@dataclass(frozen=True)
class Family:
    """One model at its published width.

    Attributes:
        config: of a depth: its config.json.
        build: Hugging Face's tower of such a configuration.
        prefix: of the tower's names in a checkpoint.
        run: its forward over prepared items, to tokens of all of them.
    """

    depth: int
    config: Callable[[int], dict[str, Any]]
    processor: Mapping[str, Any]
    build: Callable[[Mapping[str, Any]], nn.Module]
    prefix: str
    run: Callable[[nn.Module, Batch, torch.dtype], torch.Tensor]
    cases: tuple[str, ...] = ("1080p", "4x448p")


def _vision(architecture: str, vision: dict[str, Any]) -> dict[str, Any]:
    return {"architectures": [f"{architecture}ForConditionalGeneration"], "vision_config": vision}


def _pixels(batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    rows = torch.cat([item.inputs for item in batch]).float()
    return rows.sub_(127.5).div_(127.5).to(dtype)


def _run_qwen(tower: Any, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    out = tower(_pixels(batch, dtype), grid_thw=torch.tensor([item.grid for item in batch]))
    return torch.cat([out.pooler_output, *(getattr(out, "deepstack_features", None) or [])], dim=1)


def _run_internvl(model: Any, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    """Rows of 14 x 14 patches in blocks of 2 x 2, back to tiles."""
    blocks = _pixels(batch, dtype).view(-1, 16, 16, 2, 2, 3, 14, 14)
    tiles = blocks.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(-1, 3, 448, 448)
    out: torch.Tensor = model.get_image_features(tiles).pooler_output
    return out.reshape(-1, out.shape[-1])


def _run_audio(model: Any, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    hidden = model.audio_tower(torch.stack([item.inputs for item in batch]).to(dtype)).last_hidden_state
    tokens: torch.Tensor = model.multi_modal_projector(hidden)
    return tokens.reshape(-1, tokens.shape[-1])


def _qwen2_vl(depth: int) -> dict[str, Any]:
    vision = {"depth": depth, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4}
    return _vision("Qwen2VL", vision)


def _qwen2_5_vl(depth: int) -> dict[str, Any]:
    vision = {"depth": depth, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584, "num_heads": 16}
    full = [*range(7, depth, 8)] or [depth - 1]
    return _vision("Qwen2_5_VL", vision | {"window_size": 112, "fullatt_block_indexes": full})


def _qwen3_vl(depth: int) -> dict[str, Any]:
    vision: dict[str, Any] = {"depth": depth, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16}
    vision |= {
        "out_hidden_size": 4096,
        "patch_size": 16,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [0],
    }
    return _vision("Qwen3VL", vision)


def _internvl(depth: int) -> dict[str, Any]:
    vision = {"model_type": "internvl_vision", "hidden_size": 1024, "num_hidden_layers": depth}
    vision |= {"num_attention_heads": 16, "intermediate_size": 4096, "attention_bias": True, "norm_type": "layer_norm"}
    vision |= {"image_size": [448, 448], "patch_size": [14, 14], "use_qk_norm": False}
    return _vision("InternVL", vision) | {"text_config": _TEXT}


def _qwen2_audio(depth: int) -> dict[str, Any]:
    audio = {"d_model": 1280, "encoder_layers": depth, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}
    return {
        "architectures": ["Qwen2AudioForConditionalGeneration"],
        "audio_config": audio | {"model_type": "qwen2_audio_encoder"},
        "text_config": _TEXT,
    }


def _sdpa(tower: type[Any], config: Any) -> nn.Module:
    built: nn.Module = tower._from_config(config, attn_implementation="sdpa")
    return built


FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(
        2,
        _qwen2_vl,
        _PATCHES | {"min_pixels": 3136, "max_pixels": 28 * 28 * 16384},
        lambda c: _sdpa(Qwen2VisionTransformerPretrainedModel, Qwen2VLVisionConfig(**c["vision_config"])),
        "visual.",
        _run_qwen,
    ),
    "qwen2_5_vl": Family(
        4,
        _qwen2_5_vl,
        _PATCHES | {"min_pixels": 3136, "max_pixels": 28 * 28 * 16384},
        lambda c: _sdpa(Qwen2_5_VisionTransformerPretrainedModel, Qwen2_5_VLVisionConfig(**c["vision_config"])),
        "visual.",
        _run_qwen,
    ),
    "qwen3_vl": Family(
        2,
        _qwen3_vl,
        _PATCHES | {"patch_size": 16, "size": {"longest_edge": 16777216, "shortest_edge": 65536}},
        lambda c: _sdpa(Qwen3VLVisionModel, Qwen3VLVisionConfig(**c["vision_config"])),
        "model.visual.",
        _run_qwen,
    ),
    "internvl": Family(
        4,
        _internvl,
        {"size": {"height": 448, "width": 448}, "min_patches": 1, "max_patches": 12} | HALF,
        lambda c: _sdpa(InternVLModel, InternVLConfig(vision_config=c["vision_config"], text_config=_TEXT)),
        "",
        _run_internvl,
    ),
    "qwen2_audio": Family(
        4,
        _qwen2_audio,
        {"feature_size": 128},
        lambda c: _sdpa(Qwen2AudioModel, Qwen2AudioConfig(audio_config=c["audio_config"], text_config=_TEXT)),
        "",
        _run_audio,
        ("30s",),
    ),
}


def write_checkpoint(folder: Path, name: str, depth: int) -> None:
    """Random weights in bfloat16, as published, under the published names."""
    family = FAMILIES[name]
    config = family.config(depth)
    torch.manual_seed(0)
    tower = family.build(config)
    tensors = {}
    for key, tensor in tower.state_dict().items():
        if "language_model" in key:
            continue
        scale = tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.1
        noise = torch.randn(tensor.shape) * scale
        one = 1.0 if tensor.dim() == 1 and not key.endswith("bias") else 0.0
        tensors[family.prefix + key] = (noise + one).to(torch.bfloat16)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(family.processor))
    save_file(tensors, folder / "model.safetensors")


def load_reference(folder: Path, name: str, dtype: torch.dtype) -> nn.Module:
    """Hugging Face's tower with the checkpoint's weights."""
    family = FAMILIES[name]
    tower = family.build(json.loads((folder / "config.json").read_text())).to(dtype)
    weights = load_file(folder / "model.safetensors")
    tensors = {key.removeprefix(family.prefix): tensor.to(dtype) for key, tensor in weights.items()}
    missing, unexpected = tower.load_state_dict(tensors, strict=False)
    assert not unexpected and all("language_model" in key for key in missing), (missing, unexpected)
    return tower.eval()


def media_of(case: str) -> list[Media]:
    """Files of noise: one picture of 1920 x 1080, four of 448 x 448, or 30 s of sound."""
    draw = np.random.default_rng(0)
    out = io.BytesIO()
    if case == "30s":
        sound = draw.standard_normal(30 * 16000).astype(np.float32) * 0.1
        soundfile.write(out, sound, 16000, format="WAV", subtype="FLOAT")
        return [Media("audio", out.getvalue())]
    media = []
    for height, width in [(1080, 1920)] if case == "1080p" else [(448, 448)] * 4:
        out = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(out, "BMP")
        media.append(Media("image", out.getvalue()))
    return media
