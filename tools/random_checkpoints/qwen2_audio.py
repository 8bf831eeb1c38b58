"""A random Qwen2-Audio checkpoint: 2 tower layers over clips of up to 30 s."""

from __future__ import annotations

from pathlib import Path

from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from random_checkpoints.common import (
    CHAT_TOKENS,
    chat_template,
    draw_weights,
    save_byte_tokenizer,
    text_config,
    write_generation_config,
    write_whisper_preprocessor,
)

_SPECIAL_TOKENS = [*CHAT_TOKENS, "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
_CHAT_TEMPLATE = chat_template({("audio", "audio_url", "input_audio"): "<|audio_bos|><|AUDIO|><|audio_eos|>"})


def write(out_dir: Path, seed: int) -> None:
    """Write it."""
    ids = save_byte_tokenizer(out_dir, _SPECIAL_TOKENS, _CHAT_TEMPLATE)
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "d_model": 128,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 256,
            "encoder_layers": 2,
            "num_mel_bins": 128,
            "max_source_positions": 1500,
        },
        text_config=text_config(ids, model_type="qwen2"),
        audio_token_index=ids["<|AUDIO|>"],
    )
    model = Qwen2AudioForConditionalGeneration(config)
    draw_weights(model, seed)
    model.save_pretrained(out_dir)
    write_generation_config(out_dir, ids)
    write_whisper_preprocessor(out_dir, "Qwen2AudioProcessor")
