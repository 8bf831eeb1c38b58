"""Qwen2-Audio's processor: describes, decodes and prepares audio."""

from __future__ import annotations

import math
from dataclasses import asdict

import torch

from encoder_workers.audio import decode_audio, read_audio_length
from encoder_workers.families.qwen2_audio.features import (
    LogMel,
    MelSettings,
    clip_lengths,
    num_mel_frames,
    num_tokens,
    num_tower_rows,
)
from encoder_workers.given_embeddings import GivenEmbedding, require_arrays
from encoder_workers.media import (
    Decoded,
    DecodedAudio,
    ItemMetadata,
    Limits,
    Media,
    Prepared,
    ProcessorOptions,
)
from transfer.errors import BadMedia, LimitExceeded
from transfer.messages import Modality

_TRUNCATION = "truncation"


class Qwen2AudioProcessor:
    """Implements encoder_workers.interface.Processor.

    The tower hears one clip at a time. A longer sound is cut into clips, whose tokens follow one another; with the
    option `truncation` it is cut off after the first clip, as Whisper's feature extractor does by default.
    """

    modalities: tuple[Modality, ...] = ("audio",)

    def __init__(self, mel: MelSettings) -> None:
        self._mel = mel
        self._features = LogMel(mel)

    @property
    def settings(self) -> dict[str, object]:
        return asdict(self._mel)

    def describe(self, media: Media, limits: Limits) -> ItemMetadata:
        """Raises BadMedia as reading the header does; ValueError for any option."""
        _require_audio(media.modality)
        metadata = self.audio_metadata(self._num_samples(media, limits))
        if metadata.num_tokens > limits.tokens:
            raise LimitExceeded(
                f"the audio would take {metadata.num_tokens} tokens, more than the limit of {limits.tokens}"
            )
        return metadata

    def describe_given(self, modality: Modality, given: GivenEmbedding) -> ItemMetadata:
        """As many tokens as it has rows. Raises BadMedia when it has other fields than the tensor."""
        _require_audio(modality)
        require_arrays(given, ())
        return ItemMetadata("audio", len(given.rows), len(given.rows), ())

    def audio_metadata(self, num_samples: int) -> ItemMetadata:
        """The token formula: tokens of a sound of this many samples at the model's rate, none of them cut off."""
        frames = [num_mel_frames(length, self._mel) for length in clip_lengths(num_samples, self._mel)]
        tokens = sum(num_tokens(of_clip) for of_clip in frames)
        if tokens < 1:
            raise BadMedia(f"the audio is too short: {num_samples / self._mel.rate:.3f} s give no token")
        rows = [num_tower_rows(of_clip) for of_clip in frames]
        return ItemMetadata("audio", tokens, sum(rows), (), num_pairs=sum(of_clip**2 for of_clip in rows))

    def decode(self, media: Media, limits: Limits) -> Decoded:
        metadata = self.describe(media, limits)
        max_s = math.ceil(self._num_samples(media, limits) / self._mel.rate)
        return DecodedAudio(decode_audio(media.data, limits, rate=self._mel.rate, max_s=max_s), metadata)

    def preprocess(self, decoded: Decoded) -> Prepared:
        assert isinstance(decoded, DecodedAudio), type(decoded)
        lengths = clip_lengths(len(decoded.samples), self._mel)
        features = torch.cat([self._features(clip) for clip in torch.split(decoded.samples, lengths)], dim=1)
        return Prepared(features, (1, 1, decoded.metadata.num_patches), decoded.metadata)

    def _num_samples(self, media: Media, limits: Limits) -> int:
        """Samples at the model's rate that are heard."""
        num_samples = read_audio_length(media.data, limits).resampled(self._mel.rate)
        return min(num_samples, self._mel.clip_samples) if _truncates(media.options) else num_samples


def _require_audio(modality: Modality) -> None:
    if modality != "audio":
        raise BadMedia(f"this model takes audio, not {modality}")


def _truncates(options: ProcessorOptions) -> bool:
    for name, value in options:
        if name != _TRUNCATION:
            raise ValueError(f"unknown processor option {name!r}; known: {_TRUNCATION}")
        if not isinstance(value, bool):
            raise ValueError(f"processor option {_TRUNCATION} must be true or false, not {value!r}")
    return bool(dict(options).get(_TRUNCATION, False))
