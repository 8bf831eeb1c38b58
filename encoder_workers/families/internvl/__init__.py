"""InternVL: images cut into tiles, an InternViT tower and its projector; published in two layouts, both read here."""

from encoder_workers.families.internvl.family import load_processor, load_tower

__all__ = ["load_processor", "load_tower"]
