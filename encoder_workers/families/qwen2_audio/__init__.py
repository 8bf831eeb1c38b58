"""Qwen2-Audio: log-mel features, a Whisper-like tower over 30 s, pooled by two, and its processor."""

from encoder_workers.families.qwen2_audio.family import load_processor, load_tower

__all__ = ["load_processor", "load_tower"]
