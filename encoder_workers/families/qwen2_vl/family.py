"""Builds the Qwen2-VL processor and tower from a checkpoint."""

from __future__ import annotations

import torch

from encoder_workers.checkpoint import Checkpoint
from encoder_workers.config_reader import ConfigReader
from encoder_workers.families.activations import read_activation
from encoder_workers.families.qwen2_vl.tower import PARAMETER_SOURCES, Qwen2Parameters, Qwen2Tower, TowerConfig
from encoder_workers.families.qwen_pixels import read_pixel_settings, require_same_grid
from encoder_workers.families.qwen_processor import QwenVLProcessor
from encoder_workers.families.qwen_video import read_video_settings
from encoder_workers.families.rope_2d import read_rope_theta
from encoder_workers.families.weights import load_parameters, suffix_sources, tower_prefix
from npu_kernels import Ops

PREFIXES = ("visual.", "model.visual.")


def read_config(checkpoint: Checkpoint) -> TowerConfig:
    """vision_config of config.json. Raises CheckpointError."""
    vision = ConfigReader(checkpoint.config, "config.json").section("vision_config")
    width = vision.integer("embed_dim")
    return TowerConfig(
        depth=vision.integer("depth"),
        width=width,
        num_heads=vision.integer("num_heads"),
        mlp_width=int(width * vision.number("mlp_ratio", 4)),
        activation=read_activation(vision, "quick_gelu"),
        out_width=vision.integer("hidden_size"),
        patch_size=vision.integer("patch_size", 14),
        temporal_patch_size=vision.integer("temporal_patch_size", 2),
        merge_size=vision.integer("spatial_merge_size", 2),
        rope_theta=read_rope_theta(vision),
    )


def load_processor(checkpoint: Checkpoint) -> QwenVLProcessor:
    """Reads configuration only."""
    return QwenVLProcessor(read_pixel_settings(checkpoint), read_video_settings(checkpoint, "qwen2_vl"))


def load_tower(checkpoint: Checkpoint, ops: Ops, device: torch.device, dtype: torch.dtype) -> Qwen2Tower:
    """Reads the tensors under `visual.` only."""
    config, pixels = read_config(checkpoint), read_pixel_settings(checkpoint)
    require_same_grid(pixels, config.patch_size, config.temporal_patch_size, config.merge_size)
    with torch.device("meta"):
        parameters = Qwen2Parameters(config)
    prefix = tower_prefix(checkpoint, PREFIXES)
    sources = suffix_sources(prefix, PARAMETER_SOURCES)
    load_parameters(parameters, checkpoint, [prefix], sources, device=device, dtype=dtype)
    return Qwen2Tower(config, pixels, parameters, ops, device, dtype)
