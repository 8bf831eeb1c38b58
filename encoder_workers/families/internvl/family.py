"""Builds InternVL's processor and tower from a checkpoint in OpenGVLab's layout or the -hf one."""

from __future__ import annotations

from collections.abc import Callable

import torch

from encoder_workers.checkpoint import Checkpoint, CheckpointError
from encoder_workers.config_reader import ConfigReader
from encoder_workers.families.activations import read_activation
from encoder_workers.families.internvl.layouts import hf_sources, opengvlab_sources
from encoder_workers.families.internvl.processor import InternVLProcessor, TileSettings
from encoder_workers.families.internvl.tower import InternVLParameters, InternVLTower, NormKind, TowerConfig
from encoder_workers.families.normalize import Normalization, read_normalization
from encoder_workers.families.weights import load_parameters, tower_prefix
from npu_kernels import Ops

_IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def read_tiles(checkpoint: Checkpoint) -> TileSettings:
    """How images are cut: config.json in OpenGVLab's layout, preprocessor_config.json in the other."""
    config = ConfigReader(checkpoint.config, "config.json")
    vision = config.section("vision_config")
    patch_size = _side(vision, "patch_size", 14)
    ratio = config.number("downsample_ratio", 0.5)
    if not 0 < ratio <= 1 or (1 / ratio) % 1:
        raise CheckpointError(f"{config.where}: downsample_ratio must be one over a whole number, not {ratio}")
    if _is_hf(checkpoint):
        content = checkpoint.read_json("preprocessor_config.json")
        if content is None:
            raise CheckpointError(f"{checkpoint.directory} has no preprocessor_config.json")
        reader = ConfigReader(content, "preprocessor_config.json")
        tile_size = reader.section("size").integer("height")
        min_tiles, max_tiles = reader.integer("min_patches", 1), reader.integer("max_patches", 12)
        thumbnail, normalization, column_major = True, read_normalization(reader, _IMAGENET), False
    else:
        tile_size = config.integer("force_image_size", vision.integer("image_size", 448))
        dynamic = config.flag("dynamic_image_size", True)
        min_tiles = config.integer("min_dynamic_patch", 1) if dynamic else 1
        max_tiles = config.integer("max_dynamic_patch", 12) if dynamic else 1
        thumbnail, normalization = config.flag("use_thumbnail", True), _IMAGENET
        column_major = config.text("ps_version", "v2") == "v1"
    if tile_size != _side(vision, "image_size", 448):
        raise CheckpointError(
            f"tiles of {tile_size} pixels for a tower of {_side(vision, 'image_size', 448)}: not supported"
        )
    return TileSettings(
        layout="hf" if _is_hf(checkpoint) else "opengvlab",
        tile_size=tile_size,
        patch_size=patch_size,
        merge_size=int(1 / ratio),
        min_tiles=min_tiles,
        max_tiles=max_tiles,
        thumbnail=thumbnail,
        column_major=column_major,
        normalization=normalization,
    )


def read_config(checkpoint: Checkpoint, tiles: TileSettings) -> TowerConfig:
    """vision_config of config.json. Raises CheckpointError."""
    config = ConfigReader(checkpoint.config, "config.json")
    vision = config.section("vision_config")
    hf = _is_hf(checkpoint)
    layer_key = "vision_feature_layer" if hf else "select_layer"
    if config.integer(layer_key, -1) != -1:
        raise CheckpointError(f"{config.where}: {layer_key} must be -1, the last layer")
    if hf and not vision.flag("use_mean_pooling", True):
        raise CheckpointError(f"{vision.where}: use_mean_pooling must be true")
    return TowerConfig(
        depth=vision.integer("num_hidden_layers"),
        width=vision.integer("hidden_size"),
        num_heads=vision.integer("num_attention_heads"),
        mlp_width=vision.integer("intermediate_size"),
        activation=read_activation(vision, "gelu"),
        norm=_read_norm(vision),
        eps=vision.number("layer_norm_eps", 1e-6),
        qkv_bias=vision.flag("attention_bias" if hf else "qkv_bias", not hf),
        qk_norm=vision.flag("use_qk_norm" if hf else "qk_normalization", False),
        num_positions=tiles.side**2 + 1,
        out_width=config.section("text_config" if hf else "llm_config").integer("hidden_size"),
    )


def load_processor(checkpoint: Checkpoint) -> InternVLProcessor:
    """Reads configuration only."""
    return InternVLProcessor(read_tiles(checkpoint))


def load_tower(checkpoint: Checkpoint, ops: Ops, device: torch.device, dtype: torch.dtype) -> InternVLTower:
    """Reads the tensors of the tower and the projector only."""
    tiles = read_tiles(checkpoint)
    config = read_config(checkpoint, tiles)
    with torch.device("meta"):
        parameters = InternVLParameters(config, tiles)
    sources: Callable[[str], tuple[str, ...]] = opengvlab_sources
    prefixes = ["vision_model.", "mlp1."]
    if _is_hf(checkpoint):
        root = tower_prefix(checkpoint, ["vision_tower.", "model.vision_tower."]).removesuffix("vision_tower.")
        sources = hf_sources(root)
        prefixes = [f"{root}vision_tower.", f"{root}multi_modal_projector."]
    load_parameters(parameters, checkpoint, prefixes, sources, device=device, dtype=dtype)
    return InternVLTower(config, tiles, parameters, ops, device, dtype)


def _is_hf(checkpoint: Checkpoint) -> bool:
    return "llm_config" not in checkpoint.config


def _side(reader: ConfigReader, key: str, default: int) -> int:
    """A side in pixels: a number, or in the -hf layout a pair of equal ones."""
    if reader.is_list(key):
        height, width = reader.integers(key)
        if height != width:
            raise CheckpointError(f"{reader.where}: {key} must be square, not {height}x{width}")
        return height
    return reader.integer(key, default)


def _read_norm(vision: ConfigReader) -> NormKind:
    match vision.text("norm_type", "layer_norm"):
        case "layer_norm":
            return "layer_norm"
        case "rms_norm":
            return "rms_norm"
        case other:
            raise CheckpointError(f"{vision.where}: norm_type must be layer_norm or rms_norm, not {other!r}")
