"""InternVL's processor: describes, decodes and prepares images."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch

from encoder_workers.families.internvl.tiles import (
    TileGrid,
    choose_grid,
    cut_tiles,
    resize_like_pillow,
    resize_like_tensors,
)
from encoder_workers.families.normalize import Normalization
from encoder_workers.given_embeddings import GivenEmbedding, require_arrays
from encoder_workers.images import decode_image, read_image_size
from encoder_workers.media import (
    Decoded,
    DecodedImage,
    ItemMetadata,
    Limits,
    Media,
    Prepared,
    ProcessorOptions,
)
from transfer.errors import BadMedia, LimitExceeded
from transfer.messages import Metadata, Modality

Layout = Literal["opengvlab", "hf"]
_OPTION_NAMES: dict[Layout, tuple[str, str]] = {
    "opengvlab": ("min_dynamic_patch", "max_dynamic_patch"),
    "hf": ("min_patches", "max_patches"),
}


@dataclass(frozen=True)
class TileSettings:
    """How the checkpoint cuts images."""

    layout: Layout
    tile_size: int
    patch_size: int
    merge_size: int
    min_tiles: int
    max_tiles: int
    thumbnail: bool
    column_major: bool
    """Tokens of a tile run down its columns: ps_version v1, whose shuffle leaves them transposed."""
    normalization: Normalization

    @property
    def side(self) -> int:
        """Patches along a tile."""
        return self.tile_size // self.patch_size

    @property
    def patch_width(self) -> int:
        return 3 * self.patch_size**2

    @property
    def tokens_per_tile(self) -> int:
        return (self.side // self.merge_size) ** 2


class InternVLProcessor:
    """Implements encoder_workers.interface.Processor.

    Options of a request bound the number of tiles: min_dynamic_patch and max_dynamic_patch in OpenGVLab's layout,
    min_patches and max_patches in the -hf layout, as in vLLM's mm_processor_kwargs.
    """

    modalities: tuple[Modality, ...] = ("image",)

    def __init__(self, tiles: TileSettings) -> None:
        self._tiles = tiles
        self._resize = resize_like_pillow if tiles.layout == "opengvlab" else resize_like_tensors

    @property
    def settings(self) -> dict[str, object]:
        return asdict(self._tiles)

    def describe(self, media: Media, limits: Limits) -> ItemMetadata:
        """Raises BadMedia as reading the header does; ValueError for an option it does not know."""
        return self._describe(media, limits)[0]

    def describe_given(self, modality: Modality, given: GivenEmbedding) -> ItemMetadata:
        """Whole tiles. Raises BadMedia when it has other fields than the tensor."""
        _require_image(modality)
        require_arrays(given, ())
        return self._metadata(max(1, len(given.rows) // self._tiles.tokens_per_tile))

    def image_metadata(self, height: int, width: int, options: ProcessorOptions = ()) -> ItemMetadata:
        """The token formula: tiles and tokens of an upright image of this size in pixels."""
        return self._metadata(self._grid(height, width, options).num_tiles)

    def decode(self, media: Media, limits: Limits) -> Decoded:
        metadata, _ = self._describe(media, limits)
        return DecodedImage(decode_image(media.data, limits), metadata, media.options)

    def preprocess(self, decoded: Decoded) -> Prepared:
        assert isinstance(decoded, DecodedImage), type(decoded)
        settings = self._tiles
        height, width = decoded.pixels.shape[:2]
        tiles = cut_tiles(decoded.pixels, self._grid(height, width, decoded.options), settings.tile_size, self._resize)
        rows = tile_patches(tiles, settings)
        return Prepared(rows, (len(tiles), settings.side, settings.side), decoded.metadata)

    def _describe(self, media: Media, limits: Limits) -> tuple[ItemMetadata, TileGrid]:
        _require_image(media.modality)
        size = read_image_size(media.data, limits)
        grid = self._grid(size.height, size.width, media.options)
        metadata = self._metadata(grid.num_tiles)
        if metadata.num_tokens > limits.tokens:
            raise LimitExceeded(
                f"the image would take {metadata.num_tokens} tokens, more than the limit of {limits.tokens}"
            )
        return metadata, grid

    def _grid(self, height: int, width: int, options: ProcessorOptions) -> TileGrid:
        settings = _bounded(self._tiles, options)
        return choose_grid(
            height,
            width,
            tile_size=settings.tile_size,
            min_tiles=settings.min_tiles,
            max_tiles=settings.max_tiles,
            thumbnail=settings.thumbnail,
        )

    def _metadata(self, num_tiles: int) -> ItemMetadata:
        rows_per_tile = self._tiles.side**2 + 1
        return ItemMetadata(
            modality="image",
            num_tokens=num_tiles * self._tiles.tokens_per_tile,
            num_patches=num_tiles * rows_per_tile,
            prompt=(Metadata.of("image_num_patches", num_tiles),),
            num_pairs=num_tiles * rows_per_tile**2,
        )


def _require_image(modality: Modality) -> None:
    if modality != "image":
        raise BadMedia(f"this model takes images, not {modality}")


def tile_patches(tiles_NCHW: torch.Tensor, settings: TileSettings) -> torch.Tensor:
    """Patch rows [N * side^2, patch_width]; the merge_size^2 patches that become one token are neighbours."""
    patch, merge = settings.patch_size, settings.merge_size
    blocks = settings.side // merge
    split = tiles_NCHW.reshape(-1, 3, blocks, merge, patch, blocks, merge, patch)
    block_order = (5, 2) if settings.column_major else (2, 5)
    return split.permute(0, *block_order, 3, 6, 1, 4, 7).reshape(-1, settings.patch_width)


def _bounded(settings: TileSettings, options: ProcessorOptions) -> TileSettings:
    low, high = _OPTION_NAMES[settings.layout]
    for name, value in options:
        if name not in (low, high):
            raise ValueError(f"unknown processor option {name!r}; known: {high}, {low}")
        if type(value) is not int or not 1 <= value <= 64:
            raise ValueError(f"processor option {name} must be an integer from 1 to 64, not {value!r}")
        settings = replace(settings, min_tiles=value) if name == low else replace(settings, max_tiles=value)
    if settings.min_tiles > settings.max_tiles:
        raise ValueError(f"{low} {settings.min_tiles} is more than {high} {settings.max_tiles}")
    return settings
