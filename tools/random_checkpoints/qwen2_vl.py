"""A random Qwen2-VL checkpoint: 4 tower layers, each attending to a whole frame."""

from __future__ import annotations

from pathlib import Path

from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from random_checkpoints.qwen_vl import write_qwen_vl


def write(out_dir: Path, seed: int) -> None:
    """Write it."""
    write_qwen_vl(
        out_dir,
        seed,
        config_class=Qwen2VLConfig,
        model_class=Qwen2VLForConditionalGeneration,
        vision={"embed_dim": 128, "hidden_size": 128, "mlp_ratio": 2, "hidden_act": "quick_gelu"},
        rope={"type": "mrope", "mrope_section": [8, 12, 12]},
        more_text={},
        patch_size=14,
        processor_class="Qwen2VLProcessor",
        video_processor="Qwen2VLVideoProcessor",
        names_min_max=True,
    )
