"""The typed values of the encoder's inner path: media in, decoded, prepared, and the embedding that comes out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from transfer.messages import Metadata, Modality, OptionValue

ProcessorOptions = tuple[tuple[str, OptionValue], ...]


@dataclass(frozen=True)
class Media:
    """One item as it came: the bytes of its file, and the processor options of its request (such as max_pixels)."""

    modality: Modality
    data: bytes
    options: ProcessorOptions = ()


@dataclass(frozen=True)
class Limits:
    """What one item may cost. Each is checked from the file's header, before anything of that size is allocated."""

    item_bytes: int = 64 * 2**20
    pixels: int = 50_000_000
    """Width times height of an image as stored, or of one frame of a video."""
    tokens: int = 32_768
    """Placeholder tokens of one item."""
    frames: int = 768
    """Frames shown of one video."""
    video_s: float = 600.0
    """Seconds that one video file lasts."""


@dataclass(frozen=True)
class ItemMetadata:
    """What the prompt needs to know of an item before its embedding exists; follows from the file's header alone."""

    modality: Modality
    num_tokens: int
    num_patches: int
    """Rows the tower computes on for this item: its linear cost."""
    prompt: tuple[Metadata, ...]
    """Arrays under vLLM's own field names, for instance image_grid_thw of shape [3]."""
    num_pairs: int = 0
    """Pairs of rows that attend to each other in a layer of full attention, sum(S_i^2): its quadratic cost; 0 where a
    processor does not know its tower."""

    def array(self, name: str) -> Metadata:
        """The prompt array of that name; KeyError when the item has none."""
        for metadata in self.prompt:
            if metadata.name == name:
                return metadata
        raise KeyError(name)


@dataclass(frozen=True)
class DecodedImage:
    """Pixels [height, width, 3], uint8, upright, with the metadata that its header promised."""

    pixels: torch.Tensor
    metadata: ItemMetadata
    options: ProcessorOptions = ()


@dataclass(frozen=True)
class DecodedVideo:
    """Frames [F, 3, height, width], uint8, at the size the tower wants them, with their metadata."""

    frames: torch.Tensor
    metadata: ItemMetadata


@dataclass(frozen=True)
class DecodedAudio:
    """Mono samples [n], float32, at the model's rate, with the metadata that the header promised."""

    samples: torch.Tensor
    metadata: ItemMetadata
    options: ProcessorOptions = ()


Decoded = DecodedImage | DecodedVideo | DecodedAudio
"""What decoding an item gives; one member per modality."""


@dataclass(frozen=True)
class Prepared:
    """Input of the tower for one item: its rows on the host, in the type they are cheapest to move in."""

    inputs: torch.Tensor
    grid: tuple[int, int, int]
    """Temporal, vertical and horizontal number of patches."""
    metadata: ItemMetadata


@dataclass(frozen=True)
class Embedding:
    """Output of the tower for one item: [num_tokens, width] on the encoder's device, in its dtype."""

    tensor: torch.Tensor
    metadata: ItemMetadata
