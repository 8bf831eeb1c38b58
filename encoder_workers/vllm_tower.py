"""vLLM's own processor and tower of any multimodal model that it knows, without the language model.

For models that have no family here: `load_encoder(..., engine="vllm")`. What an item takes in the prompt comes from the
same processor, and goes to the ingress with the ticket (`told_placeholders`).
"""

from __future__ import annotations

import functools
import math
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vllm
from PIL import Image
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.engine.arg_utils import EngineArgs
from vllm.inputs import MultiModalInput
from vllm.model_executor.model_loader import get_model
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalKwargsItem
from vllm.multimodal.processing import ProcessorInputs, TimingContext
from vllm.multimodal.utils import group_and_batch_mm_kwargs
from vllm.platforms import current_platform

from encoder_workers.audio import decode_audio, read_audio_length
from encoder_workers.checkpoint import Checkpoint, CheckpointError
from encoder_workers.given_embeddings import GivenEmbedding, require_arrays
from encoder_workers.images import decode_image, read_image_size
from encoder_workers.media import (
    Decoded,
    DecodedAudio,
    DecodedImage,
    ItemMetadata,
    Limits,
    Media,
    Prepared,
    ProcessorOptions,
)
from encoder_workers.told_placeholders import ToldPlaceholder, runs_of
from transfer.errors import BadMedia, LimitExceeded
from transfer.messages import Metadata, Modality

_MODALITIES: tuple[Modality, ...] = ("image", "audio")
_SETTINGS_FILES = ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
_MAX_AUDIO_S = 3600
_MAX_SHAPES = 1024


@dataclass(frozen=True)
class VllmPrepared(Prepared):
    """One item as vLLM's processor gives it; `inputs` holds nothing."""

    item: MultiModalKwargsItem


class VllmProcessor:
    """Implements encoder_workers.interface.Processor over vLLM's processor of the model.

    An item is described by having a blank one of its size processed: sizes alone decide on the number of tokens. Each
    size is processed once. Options of a request go to the processor as they are, as vLLM's mm_processor_kwargs.
    """

    def __init__(self, config: VllmConfig, checkpoint: Checkpoint) -> None:
        """Raises CheckpointError when no item of this model can be placed in a prompt by a placeholder."""
        self._processor = MULTIMODAL_REGISTRY.create_processor(config.model_config)
        self._tokenizer = self._processor.info.get_tokenizer()
        supported = self._processor.info.get_supported_mm_limits()
        self.modalities: tuple[Modality, ...] = tuple(name for name in _MODALITIES if name in supported)
        if not self.modalities:
            raise CheckpointError(f"vLLM's encoder of {checkpoint.directory} takes neither images nor audio")
        # vLLM's processors, and the tokenizers in them, are for one thread.
        self._lock = threading.Lock()
        self._targets = {modality: self._target(modality) for modality in self.modalities}
        self._settings = {name: checkpoint.read_json(name) for name in _SETTINGS_FILES}
        self._blank = functools.lru_cache(_MAX_SHAPES)(self._describe_blank)

    @property
    def settings(self) -> dict[str, object]:
        return {"engine": f"vllm {vllm.__version__}", **self._settings}

    def describe(self, media: Media, limits: Limits) -> ItemMetadata:
        if media.modality == "image" and "image" in self.modalities:
            size = read_image_size(media.data, limits)
            metadata = self._blank("image", (size.height, size.width), media.options)
        elif media.modality == "audio" and "audio" in self.modalities:
            metadata = self._blank("audio", (self._num_samples(media, limits),), media.options)
        else:
            raise BadMedia(f"this model takes {' and '.join(self.modalities)}, not {media.modality}")
        if metadata.num_tokens > limits.tokens:
            raise LimitExceeded(
                f"the {media.modality} would take {metadata.num_tokens} tokens, more than the limit of {limits.tokens}"
            )
        return metadata

    def describe_given(self, modality: Modality, given: GivenEmbedding) -> ItemMetadata:
        require_arrays(given, ())
        try:
            processed = self._process(modality, given.rows, ())
        except (TypeError, NotImplementedError) as error:
            raise BadMedia(f"vLLM's processor of this model takes no {modality}_embeds") from error
        return self._metadata(modality, processed)

    def decode(self, media: Media, limits: Limits) -> Decoded:
        metadata = self.describe(media, limits)
        if media.modality == "image":
            return DecodedImage(decode_image(media.data, limits), metadata, media.options)
        rate = self._rate
        max_s = math.ceil(self._num_samples(media, limits) / rate)
        return DecodedAudio(decode_audio(media.data, limits, rate=rate, max_s=max_s), metadata, media.options)

    def preprocess(self, decoded: Decoded) -> Prepared:
        assert isinstance(decoded, DecodedImage | DecodedAudio), type(decoded)
        modality = decoded.metadata.modality
        item: Any = decoded.samples.numpy() if isinstance(decoded, DecodedAudio) else _picture(decoded.pixels.numpy())
        processed = self._process(modality, item, decoded.options)
        (kwargs,) = processed["mm_kwargs"][modality]
        assert kwargs is not None
        return VllmPrepared(torch.empty(0), (1, 1, decoded.metadata.num_patches), decoded.metadata, kwargs)

    @functools.cached_property
    def _rate(self) -> int:
        """Samples per second that the model hears."""
        rate = self._processor.info.get_data_parser().audio_resampler.target_sr
        assert rate is not None, "the model's processor names no rate"
        return int(rate)

    def _num_samples(self, media: Media, limits: Limits) -> int:
        num_samples = read_audio_length(media.data, limits).resampled(self._rate)
        if num_samples > _MAX_AUDIO_S * self._rate:
            raise LimitExceeded(f"the audio lasts over {_MAX_AUDIO_S} s")
        return num_samples

    def _describe_blank(self, modality: Modality, size: tuple[int, ...], options: ProcessorOptions) -> ItemMetadata:
        item: Any = np.zeros(size, np.float32) if modality == "audio" else _picture(np.zeros((*size, 3), np.uint8))
        return self._metadata(modality, self._process(modality, item, options))

    def _process(self, modality: Modality, item: Any, options: ProcessorOptions) -> MultiModalInput:
        """One item and its placeholder alone. Raises BadMedia with what the processor says against it."""
        with self._lock:
            try:
                items = self._processor.info.parse_mm_data({modality: [item]})
                inputs = ProcessorInputs(
                    list(self._targets[modality]),
                    items,
                    {modality: [modality]},  # vLLM would take a hash of the item otherwise.
                    hf_processor_mm_kwargs=dict(options),
                )
                return self._processor.apply(inputs, TimingContext(enabled=False))
            except ValueError as error:
                raise BadMedia(f"the {modality} cannot be processed: {error}") from error

    def _metadata(self, modality: Modality, processed: MultiModalInput) -> ItemMetadata:
        (place,) = processed["mm_placeholders"][modality]
        (kwargs,) = processed["mm_kwargs"][modality]
        token_ids = processed["prompt_token_ids"][place.offset : place.offset + place.length]
        flags = [True] * place.length if place.is_embed is None else place.is_embed.tolist()
        told = ToldPlaceholder(self._targets[modality], tuple(token_ids), runs_of(flags))
        num_tokens = sum(flags)
        return ItemMetadata(modality, num_tokens, num_tokens, (*told.arrays(), *_prompt_arrays(kwargs)))

    def _target(self, modality: Modality) -> tuple[int, ...]:
        """Token ids of the placeholder as the chat template writes it."""
        text = self._processor.dummy_inputs.get_dummy_text({modality: 1})
        target = tuple(self._tokenizer.encode(text, add_special_tokens=False))
        if not target:
            raise CheckpointError(f"this model's prompts have no placeholder for {modality}, which is not supported")
        return target


class VllmTower:
    """Implements encoder_workers.interface.Tower: vLLM's model without its language model."""

    layout = "main"

    def __init__(self, config: VllmConfig) -> None:
        self._config = config
        self._device = torch.device(config.device_config.device)
        self.width: int = config.model_config.get_inputs_embeds_size()
        with set_current_vllm_config(config):
            _join_group_of_one()
            self._model: Any = get_model(vllm_config=config)

    @torch.inference_mode()
    def forward(self, batch: Sequence[Prepared]) -> list[torch.Tensor]:
        items = []
        for prepared in batch:
            assert isinstance(prepared, VllmPrepared), type(prepared)
            items.append((prepared.metadata.modality, prepared.item))
        tensors: list[torch.Tensor] = []
        with set_current_vllm_config(self._config):
            for _, _, kwargs in group_and_batch_mm_kwargs(items, device=self._device):
                tensors += self._model.embed_multimodal(**kwargs)
        return tensors


def load_vllm_encoder(
    checkpoint: Checkpoint, model: str | Path, device: torch.device, dtype: torch.dtype, trust_remote_code: bool
) -> tuple[VllmProcessor, VllmTower]:
    """Both halves, on the device that vLLM's platform computes on. Raises CheckpointError, or ValueError of vLLM's."""
    if device.type != current_platform.device_type:
        raise ValueError(f"vLLM is installed for {current_platform.device_type}, so its encoder cannot run on {device}")
    config = EngineArgs(
        model=str(model),
        dtype=str(dtype).removeprefix("torch."),
        mm_encoder_only=True,
        enable_mm_embeds=True,
        mm_processor_cache_gb=0,
        enforce_eager=True,
        trust_remote_code=trust_remote_code,
    ).create_engine_config()
    if not config.model_config.is_multimodal_model:
        raise CheckpointError(f"{checkpoint.directory}: vLLM knows no multimodal model of this architecture")
    return VllmProcessor(config, checkpoint), VllmTower(config)


def _join_group_of_one() -> None:
    """vLLM's layers ask for a process group, whatever its size. Joins one that is there already."""
    with tempfile.TemporaryDirectory() as folder:
        init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, backend=current_platform.dist_backend)
        ensure_model_parallel_initialized(1, 1)


def _picture(pixels: np.ndarray[Any, Any]) -> Image.Image:
    return Image.fromarray(pixels, "RGB")


def _prompt_arrays(kwargs: MultiModalKwargsItem | None) -> tuple[Metadata, ...]:
    """What vLLM keeps on the host for the prompt's sake, such as grids; not the item's own data."""
    arrays = []
    for name, element in (kwargs or {}).items():
        if element.field.keep_on_cpu and isinstance(element.data, torch.Tensor):
            arrays.append(Metadata.of(name, element.data.tolist()))
    return tuple(arrays)
