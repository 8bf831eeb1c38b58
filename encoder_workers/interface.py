"""What a model family provides: a processor without weights, and a tower with them.

Both are plain objects of one process. A processor is stateless and may be used from several threads at once; a tower
is used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from encoder_workers.given_embeddings import GivenEmbedding
from encoder_workers.media import Decoded, ItemMetadata, Limits, Media, Prepared
from encoder_workers.shares import CostModel, ItemShape, Share
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

    def describe_given(self, modality: Modality, given: GivenEmbedding) -> ItemMetadata:
        """As `describe`, for an embedding that the client sent: the tokens that it has to have."""
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

    def forward(self, batch: Sequence[Prepared]) -> list[torch.Tensor]:
        """Embeddings [num_tokens, width], one per item in order, from one packed pass."""
        ...


class SplitTower(Tower, Protocol):
    """A tower of this process, whose items may be split over ranks, by rows in the order in which it computes them."""

    @property
    def attention_shape(self) -> AttentionShape:
        """Heads, for the start-up check of the operators."""
        ...

    @property
    def costs(self) -> CostModel:
        """What a pass costs, from the tower's dimensions."""
        ...

    def shape(self, item: Prepared) -> ItemShape:
        """Where the item may be cut, and how much of it attends to how much."""
        ...

    def forward_shares(self, shares: Sequence[Share]) -> list[torch.Tensor]:
        """Tokens [n, width] of each share, at least one, in the tower's order. `forward` is this over whole items.

        Shares of split items stand in the same order on every rank, and all ranks are in it together.
        """
        ...

    def places(self, share: Share) -> torch.Tensor:
        """Which token of the item each of the share's tokens is, [n] on the host."""
        ...
