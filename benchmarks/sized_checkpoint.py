"""A random Qwen2.5-VL checkpoint large enough that computation takes most of a request's time on a CPU."""

from __future__ import annotations

from pathlib import Path

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tools.make_random_checkpoint import write_qwen_vl

WIDTH = 512


def write_sized_checkpoint(out_dir: Path, seed: int = 1, *, tower_layers: int = 8, language_layers: int = 8) -> None:
    """Write it into an existing folder: 18 million parameters in the tower, 27 million in the language model.

    Args:
        tower_layers, language_layers: on two cores with AVX-512, 8 and 8 make encode and prefill of a picture of 448
            pixels, 1,024 patches and 256 tokens, together about half a second; the comparison says what they took.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    write_qwen_vl(
        out_dir,
        seed,
        config_class=Qwen2_5_VLConfig,
        model_class=Qwen2_5_VLForConditionalGeneration,
        vision={
            "depth": tower_layers,
            "hidden_size": 384,
            "num_heads": 6,
            "intermediate_size": 1024,
            "out_hidden_size": WIDTH,
            "window_size": 112,
            "fullatt_block_indexes": list(range(1, tower_layers, 2)),
            "hidden_act": "silu",
            "tokens_per_second": 2,
        },
        rope={"type": "mrope", "mrope_section": [8, 12, 12]},
        more_text={
            "hidden_size": WIDTH,
            "intermediate_size": 3 * WIDTH,
            "num_hidden_layers": language_layers,
            "num_attention_heads": WIDTH // 64,
            "num_key_value_heads": WIDTH // 64,
        },
        patch_size=14,
        processor_class="Qwen2_5_VLProcessor",
        video_processor="Qwen2VLVideoProcessor",
    )
