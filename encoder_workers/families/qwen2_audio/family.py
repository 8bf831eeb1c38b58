"""Builds Qwen2-Audio's processor and tower from a checkpoint."""

from __future__ import annotations

import torch

from encoder_workers.checkpoint import Checkpoint, CheckpointError
from encoder_workers.config_reader import ConfigReader
from encoder_workers.families.activations import read_activation
from encoder_workers.families.qwen2_audio.features import MelSettings
from encoder_workers.families.qwen2_audio.processor import Qwen2AudioProcessor
from encoder_workers.families.qwen2_audio.tower import Qwen2AudioParameters, Qwen2AudioTower, TowerConfig
from encoder_workers.families.weights import Sources, load_parameters, tower_prefix
from npu_kernels import Ops

_DEFAULT_LANGUAGE_WIDTH = 4096
"""Of the published file, which leaves it out."""


def read_mel_settings(checkpoint: Checkpoint) -> MelSettings:
    """preprocessor_config.json. Raises CheckpointError for settings the features do not implement."""
    content = checkpoint.read_json("preprocessor_config.json")
    if content is None:
        raise CheckpointError(f"{checkpoint.directory} has no preprocessor_config.json")
    reader = ConfigReader(content, "preprocessor_config.json")
    if reader.number("dither", 0.0) or reader.flag("do_normalize", False):
        raise CheckpointError(f"{reader.where}: dither and do_normalize are not supported")
    return MelSettings(
        num_mel_bins=reader.integer("feature_size", 128),
        n_fft=reader.integer("n_fft", 400),
        hop_length=reader.integer("hop_length", 160),
        rate=reader.integer("sampling_rate", 16000),
        clip_s=reader.integer("chunk_length", 30),
    )


def read_config(checkpoint: Checkpoint, mel: MelSettings) -> TowerConfig:
    """audio_config of config.json. Raises CheckpointError."""
    config = ConfigReader(checkpoint.config, "config.json")
    audio = config.section("audio_config")
    if audio.flag("scale_embedding", False):
        raise CheckpointError(f"{audio.where}: scale_embedding is true, which is not supported")
    num_positions = audio.integer("max_source_positions", 1500)
    num_mel_bins = audio.integer("num_mel_bins", 128)
    if num_mel_bins != mel.num_mel_bins or 2 * num_positions * mel.hop_length != mel.clip_samples:
        raise CheckpointError(f"{audio.where}: does not fit the features of {mel}")
    return TowerConfig(
        depth=audio.integer("encoder_layers"),
        width=audio.integer("d_model"),
        num_heads=audio.integer("encoder_attention_heads"),
        mlp_width=audio.integer("encoder_ffn_dim"),
        activation=read_activation(audio, "gelu", key="activation_function"),
        num_mel_bins=num_mel_bins,
        num_positions=num_positions,
        out_width=config.section("text_config").integer("hidden_size", _DEFAULT_LANGUAGE_WIDTH),
    )


def load_processor(checkpoint: Checkpoint) -> Qwen2AudioProcessor:
    """Reads configuration only."""
    return Qwen2AudioProcessor(read_mel_settings(checkpoint))


def load_tower(checkpoint: Checkpoint, ops: Ops, device: torch.device, dtype: torch.dtype) -> Qwen2AudioTower:
    """Reads the tensors of the tower and the projector only."""
    config = read_config(checkpoint, read_mel_settings(checkpoint))
    with torch.device("meta"):
        parameters = Qwen2AudioParameters(config)
    root = tower_prefix(checkpoint, ["audio_tower.", "model.audio_tower."]).removesuffix("audio_tower.")
    prefixes = [f"{root}audio_tower.", f"{root}multi_modal_projector."]
    load_parameters(parameters, checkpoint, prefixes, _sources(root), device=device, dtype=dtype)
    return Qwen2AudioTower(config, parameters, ops, device, dtype)


def _sources(root: str) -> Sources:
    def sources(parameter: str) -> tuple[str, ...]:
        if parameter.startswith("projector."):
            return (f"{root}multi_modal_projector.linear.{parameter.removeprefix('projector.')}",)
        return (f"{root}audio_tower.{parameter.replace('.mlp.', '.')}",)

    return sources
