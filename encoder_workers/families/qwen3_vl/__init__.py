"""Qwen3-VL, dense and mixture-of-experts alike: a vision tower with learned positions and DeepStack, its processor."""

from encoder_workers.families.qwen3_vl.family import load_processor, load_tower

__all__ = ["load_processor", "load_tower"]
