"""Builds the Qwen3-VL processor and tower from a checkpoint."""

from __future__ import annotations

import math

import torch

from encoder_workers.checkpoint import Checkpoint, CheckpointError
from encoder_workers.config_reader import ConfigReader
from encoder_workers.families.activations import read_activation
from encoder_workers.families.qwen3_vl.tower import PARAMETER_SOURCES, Qwen3Parameters, Qwen3Tower, TowerConfig
from encoder_workers.families.qwen_pixels import read_pixel_settings, require_same_grid
from encoder_workers.families.qwen_processor import QwenVLProcessor
from encoder_workers.families.qwen_video import read_video_settings
from encoder_workers.families.rope_2d import read_rope_theta
from encoder_workers.families.weights import load_parameters, suffix_sources, tower_prefix
from npu_kernels import Ops

PREFIXES = ("model.visual.", "visual.")


def read_config(checkpoint: Checkpoint) -> TowerConfig:
    """vision_config of config.json. Raises CheckpointError."""
    vision = ConfigReader(checkpoint.config, "config.json").section("vision_config")
    num_positions = vision.integer("num_position_embeddings")
    layers = vision.integers("deepstack_visual_indexes")
    if math.isqrt(num_positions) ** 2 != num_positions:
        raise CheckpointError(f"{vision.where}: num_position_embeddings must be a square, not {num_positions}")
    if list(layers) != sorted(set(layers)) or (layers and layers[-1] >= vision.integer("depth")):
        raise CheckpointError(f"{vision.where}: deepstack_visual_indexes must be ascending layers, not {layers}")
    return TowerConfig(
        depth=vision.integer("depth"),
        width=vision.integer("hidden_size"),
        num_heads=vision.integer("num_heads"),
        mlp_width=vision.integer("intermediate_size"),
        activation=read_activation(vision, "gelu_pytorch_tanh"),
        # Not the library's default of 3584: the language model's width differs between sizes.
        out_width=vision.integer("out_hidden_size"),
        patch_size=vision.integer("patch_size", 16),
        temporal_patch_size=vision.integer("temporal_patch_size", 2),
        merge_size=vision.integer("spatial_merge_size", 2),
        position_side=math.isqrt(num_positions),
        deepstack_layers=layers,
        rope_theta=read_rope_theta(vision),
    )


def load_processor(checkpoint: Checkpoint) -> QwenVLProcessor:
    """Reads configuration only."""
    return QwenVLProcessor(read_pixel_settings(checkpoint), read_video_settings(checkpoint, "qwen3_vl"))


def load_tower(checkpoint: Checkpoint, ops: Ops, device: torch.device, dtype: torch.dtype) -> Qwen3Tower:
    """Reads the tensors under `visual.` only."""
    config, pixels = read_config(checkpoint), read_pixel_settings(checkpoint)
    require_same_grid(pixels, config.patch_size, config.temporal_patch_size, config.merge_size)
    with torch.device("meta"):
        parameters = Qwen3Parameters(config)
    prefix = tower_prefix(checkpoint, PREFIXES)
    sources = suffix_sources(prefix, PARAMETER_SOURCES)
    load_parameters(parameters, checkpoint, [prefix], sources, device=device, dtype=dtype)
    return Qwen3Tower(config, pixels, parameters, ops, device, dtype)
