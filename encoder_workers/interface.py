"""What a model family provides: a processor without weights, and a tower with them.

Both are plain objects of one process. A processor is stateless and may be used from several threads at once; a tower
is used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from encoder_workers.media import Decoded, ItemMetadata, Limits, Media, Prepared
from npu_kernels import AttentionShape
from transfer.messages import Modality


class Processor(Protocol):
    """Media to tower inputs, and the number of tokens beforehand. Every method raises BadMedia for a bad item."""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What this family encodes."""
        ...

    @property
    def settings(self) -> dict[str, object]:
        """All that changes the outcome besides the weights, in JSON types: part of the model's revision."""
        ...

    def describe(self, media: Media, limits: Limits) -> ItemMetadata:
        """Tokens and prompt metadata from the file's header, decoding nothing. ValueError for an unknown option."""
        ...

    def decode(self, media: Media, limits: Limits) -> Decoded:
        """The raw samples of the item, with the metadata that `describe` gives."""
        ...

    def preprocess(self, decoded: Decoded) -> Prepared:
        """Rows for the tower."""
        ...


class Tower(Protocol):
    """The encoder model itself."""

    @property
    def width(self) -> int:
        """Columns of an embedding."""
        ...

    @property
    def layout(self) -> str:
        """What the columns hold: "main", or "main+deepstack3" for [main, level 0, level 1, level 2] side by side."""
        ...

    @property
    def attention_shape(self) -> AttentionShape:
        """Heads, for the start-up check of the operators."""
        ...

    def forward(self, batch: Sequence[Prepared]) -> list[torch.Tensor]:
        """Embeddings [num_tokens, width], one per item in order, from one packed pass."""
        ...
