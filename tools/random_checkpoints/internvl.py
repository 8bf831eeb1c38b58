"""A random InternVL checkpoint in the -hf layout, with a Qwen3 language model as in InternVL3.5."""

from __future__ import annotations

from pathlib import Path

from transformers import InternVLConfig, InternVLForConditionalGeneration

from random_checkpoints.common import (
    CHAT_TOKENS,
    chat_template,
    draw_weights,
    save_byte_tokenizer,
    text_config,
    write_generation_config,
    write_json,
)

TILE_SIZE = 112
PATCH_SIZE = 14
MAX_TILES = 6
TOKENS_PER_TILE = (TILE_SIZE // PATCH_SIZE // 2) ** 2
SPECIAL_TOKENS = [*CHAT_TOKENS, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
IMAGE_MEAN = [0.485, 0.456, 0.406]
IMAGE_STD = [0.229, 0.224, 0.225]
_CHAT_TEMPLATE = chat_template({("image", "image_url"): "<IMG_CONTEXT>\n", ("video", "video_url"): "<video>\n"})
_NAMED_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def write(out_dir: Path, seed: int) -> None:
    """Write it: 3 tower layers, tiles of 112 pixels and 16 tokens."""
    ids = save_byte_tokenizer(out_dir, SPECIAL_TOKENS, _CHAT_TEMPLATE, _NAMED_TOKENS)
    model = InternVLForConditionalGeneration(hf_config(ids))
    draw_weights(model, seed)
    model.save_pretrained(out_dir)
    write_generation_config(out_dir, ids)
    images = {
        "crop_to_patches": True,
        "min_patches": 1,
        "max_patches": MAX_TILES,
        "size": {"height": TILE_SIZE, "width": TILE_SIZE},
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
    }
    write_json(
        out_dir / "preprocessor_config.json",
        {"image_processor_type": "GotOcr2ImageProcessorFast", "processor_class": "InternVLProcessor", **images},
    )
    write_json(
        out_dir / "video_preprocessor_config.json",
        {"video_processor_type": "InternVLVideoProcessor", "size": images["size"]},
    )
    write_json(
        out_dir / "processor_config.json",
        {"processor_class": "InternVLProcessor", "image_seq_length": TOKENS_PER_TILE},
    )


def hf_config(ids: dict[str, int]) -> InternVLConfig:
    """The configuration in the -hf layout."""
    return InternVLConfig(
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": [TILE_SIZE, TILE_SIZE],
            "patch_size": [PATCH_SIZE, PATCH_SIZE],
            "attention_bias": True,
            "use_qk_norm": False,
            "norm_type": "layer_norm",
            "hidden_act": "gelu",
        },
        text_config=text_config(ids, model_type="qwen3", head_dim=64, rope_theta=1e6),
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=TOKENS_PER_TILE,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
    )
