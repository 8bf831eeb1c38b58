"""Qwen2-Audio's processor: describes, decodes and prepares audio."""

from __future__ import annotations

import logging
from dataclasses import asdict

from encoder_workers.audio import decode_audio, read_audio_length
from encoder_workers.families.qwen2_audio.features import (
    LogMel,
    MelSettings,
    num_mel_frames,
    num_tokens,
    num_tower_rows,
)
from encoder_workers.media import Decoded, DecodedAudio, ItemMetadata, Limits, Media, Prepared
from transfer.errors import BadMedia, LimitExceeded
from transfer.messages import Modality

logger = logging.getLogger(__name__)


class Qwen2AudioProcessor:
    """Implements encoder_workers.interface.Processor. Takes no options."""

    modalities: tuple[Modality, ...] = ("audio",)

    def __init__(self, mel: MelSettings) -> None:
        self._mel = mel
        self._features = LogMel(mel)

    @property
    def settings(self) -> dict[str, object]:
        return asdict(self._mel)

    def describe(self, media: Media, limits: Limits) -> ItemMetadata:
        """Raises BadMedia as reading the header does; ValueError for any option."""
        if media.modality != "audio":
            raise BadMedia(f"this model takes audio, not {media.modality}")
        if media.options:
            raise ValueError(f"unknown processor option {media.options[0][0]!r}; this model knows none")
        metadata = self.audio_metadata(read_audio_length(media.data, limits).resampled(self._mel.rate))
        if metadata.num_tokens > limits.tokens:
            raise LimitExceeded(
                f"the audio would take {metadata.num_tokens} tokens, more than the limit of {limits.tokens}"
            )
        return metadata

    def audio_metadata(self, num_samples: int) -> ItemMetadata:
        """The token formula: tokens of a clip of this many samples at the model's rate."""
        frames = num_mel_frames(num_samples, self._mel)
        tokens = num_tokens(frames)
        if tokens < 1:
            raise BadMedia(f"the audio is too short: {num_samples / self._mel.rate:.3f} s give no token")
        return ItemMetadata("audio", tokens, num_tower_rows(frames), ())

    def decode(self, media: Media, limits: Limits) -> Decoded:
        metadata = self.describe(media, limits)
        length = read_audio_length(media.data, limits)
        if length.resampled(self._mel.rate) > self._mel.clip_samples:
            # As the reference does: the model has positions for one clip and no more.
            logger.warning("audio of %.1f s cut to %d s", length.num_samples / length.rate, self._mel.clip_s)
        samples = decode_audio(media.data, limits, rate=self._mel.rate, max_s=self._mel.clip_s)
        return DecodedAudio(samples, metadata)

    def preprocess(self, decoded: Decoded) -> Prepared:
        assert isinstance(decoded, DecodedAudio), type(decoded)
        features = self._features(decoded.samples)
        return Prepared(features, (1, 1, decoded.metadata.num_patches), decoded.metadata)
