"""Media in, embeddings out: decoding, preprocessing and encoder models, without any language model."""

from encoder_workers.checkpoint import CheckpointError
from encoder_workers.encoder import Encoder, load_encoder, load_processor
from encoder_workers.media import (
    DecodedAudio,
    DecodedImage,
    DecodedVideo,
    Embedding,
    ItemMetadata,
    Limits,
    Media,
    Prepared,
)

__all__ = [
    "CheckpointError",
    "DecodedAudio",
    "DecodedImage",
    "DecodedVideo",
    "Embedding",
    "Encoder",
    "ItemMetadata",
    "Limits",
    "Media",
    "Prepared",
    "load_encoder",
    "load_processor",
]
