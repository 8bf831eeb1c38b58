"""A random Idefics3 checkpoint: a tower of 2 layers over tiles of 56 pixels and 4 tokens, up to 2 x 2 of them."""

from __future__ import annotations

from pathlib import Path

from transformers import Idefics3Config, Idefics3ForConditionalGeneration

from random_checkpoints.common import (
    CHAT_TOKENS,
    chat_template,
    draw_weights,
    save_byte_tokenizer,
    text_config,
    write_generation_config,
    write_json,
)

_TILE_SIZE = 56
_PATCH_SIZE = 14
_MAX_SIDE_TILES = 2
_SCALE = 2
_IMAGE_TOKENS = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
_TILE_TOKENS = [f"<row_{row + 1}_col_{column + 1}>" for row in range(2) for column in range(2)]


def write(out_dir: Path, seed: int) -> None:
    """Write it."""
    template = chat_template({("image", "image_url"): "<image>\n"})
    ids = save_byte_tokenizer(out_dir, [*CHAT_TOKENS, *_IMAGE_TOKENS, *_TILE_TOKENS], template)
    config = Idefics3Config(
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": _TILE_SIZE,
            "patch_size": _PATCH_SIZE,
        },
        text_config=text_config(ids, model_type="llama", pad_token_id=ids["<|endoftext|>"]),
        image_token_id=ids["<image>"],
        scale_factor=_SCALE,
        tie_word_embeddings=True,
    )
    model = Idefics3ForConditionalGeneration(config)
    draw_weights(model, seed)
    model.save_pretrained(out_dir)
    write_generation_config(out_dir, ids)
    write_json(
        out_dir / "preprocessor_config.json",
        {
            "image_processor_type": "Idefics3ImageProcessor",
            "processor_class": "Idefics3Processor",
            "do_image_splitting": True,
            "max_image_size": {"longest_edge": _TILE_SIZE},
            "size": {"longest_edge": _MAX_SIDE_TILES * _TILE_SIZE},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
    )
    write_json(
        out_dir / "processor_config.json",
        {"processor_class": "Idefics3Processor", "image_seq_len": (_TILE_SIZE // _PATCH_SIZE // _SCALE) ** 2},
    )
