"""Random Qwen3-VL checkpoints, dense and with experts: 4 tower layers, two of which give DeepStack levels."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import (
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from random_checkpoints.qwen_vl import write_qwen_vl

_VISION: dict[str, object] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "out_hidden_size": 128,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 2],
    "hidden_act": "gelu_pytorch_tanh",
}
_ROPE: dict[str, object] = {"rope_type": "default", "mrope_section": [12, 10, 10], "mrope_interleaved": True}


def write(out_dir: Path, seed: int) -> None:
    """Dense."""
    write_qwen_vl(
        out_dir,
        seed,
        config_class=Qwen3VLConfig,
        model_class=Qwen3VLForConditionalGeneration,
        vision=_VISION,
        rope=_ROPE,
        more_text={"head_dim": 64},
        patch_size=16,
        processor_class="Qwen3VLProcessor",
        video_processor="Qwen3VLVideoProcessor",
        names_min_max=False,
    )


def write_moe(out_dir: Path, seed: int) -> None:
    """With a mixture of 4 experts, 2 of which each token uses."""
    write_qwen_vl(
        out_dir,
        seed,
        config_class=Qwen3VLMoeConfig,
        model_class=Qwen3VLMoeForConditionalGeneration,
        vision=_VISION,
        rope=_ROPE,
        more_text={
            "head_dim": 64,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 96,
            "norm_topk_prob": True,
        },
        patch_size=16,
        processor_class="Qwen3VLProcessor",
        video_processor="Qwen3VLVideoProcessor",
        names_min_max=False,
    )
    _transpose_experts(out_dir / "model.safetensors")


def _transpose_experts(file: Path) -> None:
    """Published files hold the experts' matrices input by output, the library writes them output by input."""
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if ".experts." in name:
            tensors[name] = tensor.transpose(1, 2).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
