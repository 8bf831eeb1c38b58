"""A random Qwen2.5-VL checkpoint: 4 tower layers, two of them windowed."""

from __future__ import annotations

from pathlib import Path

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from random_checkpoints.qwen_vl import write_qwen_vl


def write(out_dir: Path, seed: int) -> None:
    """Write it."""
    write_qwen_vl(
        out_dir,
        seed,
        config_class=Qwen2_5_VLConfig,
        model_class=Qwen2_5_VLForConditionalGeneration,
        vision={
            "hidden_size": 128,
            "intermediate_size": 256,
            "out_hidden_size": 128,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
            "hidden_act": "silu",
            "tokens_per_second": 2,
        },
        rope={"type": "mrope", "mrope_section": [8, 12, 12]},
        more_text={},
        patch_size=14,
        processor_class="Qwen2_5_VLProcessor",
        video_processor="Qwen2VLVideoProcessor",
        names_min_max=True,
    )
