"""Finds the model family of a checkpoint and loads its module on first use."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch

from encoder_workers.checkpoint import Checkpoint, CheckpointError
from encoder_workers.interface import Processor, SplitTower
from npu_kernels import Ops


@dataclass(frozen=True)
class FamilyEntry:
    """Where a family's code is, and which tensors of a checkpoint belong to its tower."""

    module: str
    prefixes: tuple[str, ...]


class Family(Protocol):
    """What a family's module offers."""

    def load_processor(self, checkpoint: Checkpoint) -> Processor: ...

    def load_tower(self, checkpoint: Checkpoint, ops: Ops, device: torch.device, dtype: torch.dtype) -> SplitTower: ...


_QWEN_PREFIXES = ("visual.", "model.visual.")
_QWEN2_AUDIO_PREFIXES = (
    "audio_tower.",
    "multi_modal_projector.",
    "model.audio_tower.",
    "model.multi_modal_projector.",
)
_INTERNVL_HF_PREFIXES = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)

FAMILIES: dict[str, FamilyEntry] = {
    "qwen2_vl": FamilyEntry("encoder_workers.families.qwen2_vl", _QWEN_PREFIXES),
    "qwen2_5_vl": FamilyEntry("encoder_workers.families.qwen2_5_vl", _QWEN_PREFIXES),
    "qwen3_vl": FamilyEntry("encoder_workers.families.qwen3_vl", _QWEN_PREFIXES),
    "internvl_chat": FamilyEntry("encoder_workers.families.internvl", ("vision_model.", "mlp1.")),
    "internvl": FamilyEntry("encoder_workers.families.internvl", _INTERNVL_HF_PREFIXES),
    "qwen2_audio": FamilyEntry("encoder_workers.families.qwen2_audio", _QWEN2_AUDIO_PREFIXES),
    "qwen3_vl_moe": FamilyEntry("encoder_workers.families.qwen3_vl", _QWEN_PREFIXES),
}
"""By model_type of config.json."""

_MODEL_TYPE_OF_ARCHITECTURE = {
    "Qwen2VLForConditionalGeneration": "qwen2_vl",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
    "Qwen3VLMoeForConditionalGeneration": "qwen3_vl_moe",
    "Qwen2AudioForConditionalGeneration": "qwen2_audio",
    "InternVLChatModel": "internvl_chat",
    "InternVLForConditionalGeneration": "internvl",
}


def find_family(checkpoint: Checkpoint) -> FamilyEntry:
    """From `architectures`, else `model_type`. Raises CheckpointError that lists the families there are."""
    architectures = checkpoint.config.get("architectures")
    names = architectures if isinstance(architectures, Sequence) and not isinstance(architectures, str) else ()
    for name in names:
        if name in _MODEL_TYPE_OF_ARCHITECTURE:
            return FAMILIES[_MODEL_TYPE_OF_ARCHITECTURE[name]]
    model_type = checkpoint.config.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    raise CheckpointError(
        f"no native encoder for architectures {list(names)}, model_type {model_type!r}; there is one for "
        f"{', '.join(sorted(_MODEL_TYPE_OF_ARCHITECTURE))}; "
        "another model that vLLM knows runs with encoder.engine: vllm"
    )


def load_family(entry: FamilyEntry) -> Family:
    """The family's module."""
    return cast(Family, importlib.import_module(entry.module))
