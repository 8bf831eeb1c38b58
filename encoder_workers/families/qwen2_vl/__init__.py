"""Qwen2-VL: a vision tower with LayerNorm, QuickGELU and full attention inside each frame, and its processor."""

from encoder_workers.families.qwen2_vl.family import load_processor, load_tower

__all__ = ["load_processor", "load_tower"]
