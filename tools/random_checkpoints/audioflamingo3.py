"""A random Audio Flamingo 3 checkpoint: 2 tower layers over windows of 30 s."""

from __future__ import annotations

from pathlib import Path

from transformers import AudioFlamingo3Config, AudioFlamingo3ForConditionalGeneration

from random_checkpoints.common import (
    CHAT_TOKENS,
    chat_template,
    draw_weights,
    save_byte_tokenizer,
    text_config,
    write_generation_config,
    write_json,
    write_whisper_preprocessor,
)

_CHAT_TEMPLATE = chat_template({("audio", "audio_url", "input_audio"): "<sound>"})


def write(out_dir: Path, seed: int) -> None:
    """Write it."""
    ids = save_byte_tokenizer(out_dir, [*CHAT_TOKENS, "<sound>"], _CHAT_TEMPLATE)
    config = AudioFlamingo3Config(
        audio_config={
            "model_type": "audioflamingo3_encoder",
            "hidden_size": 128,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_mel_bins": 128,
            "max_source_positions": 1500,
        },
        text_config=text_config(ids, model_type="qwen2"),
        audio_token_id=ids["<sound>"],
    )
    model = AudioFlamingo3ForConditionalGeneration(config)
    draw_weights(model, seed)
    model.save_pretrained(out_dir)
    write_generation_config(out_dir, ids)
    write_whisper_preprocessor(out_dir, "AudioFlamingo3Processor")
    write_json(
        out_dir / "processor_config.json", {"processor_class": "AudioFlamingo3Processor", "audio_token": "<sound>"}
    )
