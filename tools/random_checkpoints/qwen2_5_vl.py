"""Random Qwen2.5-VL checkpoints: one for tests, and two whose sizes suit a measurement."""

from __future__ import annotations

from pathlib import Path

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from random_checkpoints.qwen_vl import write_qwen_vl

_HALF_SECOND_WIDTH = 512
_WIDE_WIDTH = 4096


def write(out_dir: Path, seed: int) -> None:
    """Four tower layers, two of them windowed; 128 columns everywhere."""
    tower = {"hidden_size": 128, "intermediate_size": 256, "fullatt_block_indexes": [1, 3]}
    _write(out_dir, seed, tower, width=128, mrope_section=[8, 12, 12], more_text={})


def write_half_second(out_dir: Path, seed: int) -> None:
    """A picture of 448 pixels takes encode and prefill about half a second together, on two cores with AVX-512.

    18 million parameters in the tower, 27 million in the language model.
    """
    tower = {
        "depth": 8,
        "hidden_size": 384,
        "num_heads": 6,
        "intermediate_size": 1024,
        "fullatt_block_indexes": [1, 3, 5, 7],
    }
    more_text = {
        "intermediate_size": 3 * _HALF_SECOND_WIDTH,
        "num_hidden_layers": 8,
        "num_attention_heads": _HALF_SECOND_WIDTH // 64,
        "num_key_value_heads": _HALF_SECOND_WIDTH // 64,
    }
    _write(out_dir, seed, tower, width=_HALF_SECOND_WIDTH, mrope_section=[8, 12, 12], more_text=more_text)


def write_wide(out_dir: Path, seed: int) -> None:
    """Embeddings of 16 KiB a token in float32, as a language model of seven billion parameters has, and little else."""
    tower = {"depth": 2, "hidden_size": 128, "intermediate_size": 256, "fullatt_block_indexes": []}
    heads = _WIDE_WIDTH // 128
    more_text = {
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
    }
    _write(out_dir, seed, tower, width=_WIDE_WIDTH, mrope_section=[16, 24, 24], more_text=more_text)


def _write(
    out_dir: Path,
    seed: int,
    tower: dict[str, object],
    *,
    width: int,
    mrope_section: list[int],
    more_text: dict[str, object],
) -> None:
    """Write one whose tower gives `width` columns to a language model as wide."""
    shared = {"out_hidden_size": width, "window_size": 112, "hidden_act": "silu", "tokens_per_second": 2}
    write_qwen_vl(
        out_dir,
        seed,
        config_class=Qwen2_5_VLConfig,
        model_class=Qwen2_5_VLForConditionalGeneration,
        vision={**tower, **shared},
        rope={"type": "mrope", "mrope_section": mrope_section},
        more_text={"hidden_size": width, **more_text},
        patch_size=14,
        processor_class="Qwen2_5_VLProcessor",
        video_processor="Qwen2VLVideoProcessor",
        names_min_max=True,
    )
