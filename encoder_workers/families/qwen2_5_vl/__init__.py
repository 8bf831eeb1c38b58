"""Qwen2.5-VL: a window-attention vision tower with four full layers, and its processor."""

from encoder_workers.families.qwen2_5_vl.family import load_processor, load_tower

__all__ = ["load_processor", "load_tower"]
