"""Embeddings that a client computed itself: how they travel as one item's bytes, and the checks before any is used.

The ingress packs the parts unopened; the encoder opens them. Nothing of such an item runs through a tower.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from encoder_workers.media import ItemMetadata, Limits, Media
from encoder_workers.tensor_files import read_tensor
from transfer.errors import BadMedia, LimitExceeded
from transfer.messages import Metadata

Field = bytes | Sequence[int | float]
"""A tensor's file, or the numbers themselves."""

_MAGIC = b"\x93TRIPTYCH-GIVEN\n"
_LENGTH_BYTES = 4
_MAX_NUMBERS = 4096
_LARGE = 2**31


@dataclass(frozen=True)
class GivenEmbedding:
    """What a client sent: rows [num_tokens, width], and the arrays that the prompt needs beside them, by name."""

    rows: torch.Tensor
    arrays: Mapping[str, Metadata]


def pack_given(fields: Mapping[str, Field]) -> bytes:
    """One item's bytes: a JSON header, then the tensors' files one after another."""
    header = [[name, len(value) if isinstance(value, bytes) else list(value)] for name, value in fields.items()]
    text = json.dumps(header).encode()
    files = [value for value in fields.values() if isinstance(value, bytes)]
    return b"".join([_MAGIC, len(text).to_bytes(_LENGTH_BYTES, "little"), text, *files])


def is_given(data: bytes) -> bool:
    """Whether an item's bytes are an embedding and not media."""
    return data.startswith(_MAGIC)


def open_given(media: Media) -> GivenEmbedding:
    """Take apart what `pack_given` put together.

    Raises:
        BadMedia: it is not whole, its tensors cannot be read, or the embedding is not one of [num_tokens, width].
    """
    name = f"{media.modality}_embeds"
    fields = _unpack(media.data)
    if not isinstance(embedding := fields.pop(name, None), bytes):
        raise BadMedia(f"the embedding has no field {name} that holds a tensor")
    rows = read_tensor(embedding, name)
    if rows.dim() == 3 and len(rows) == 1:
        rows = rows[0]
    if rows.dim() != 2 or not len(rows) or not rows.is_floating_point():
        raise BadMedia(f"{name} must be [num_tokens, width] of floats, not {list(rows.shape)} of {rows.dtype}")
    return GivenEmbedding(rows, {field: _array(field, value) for field, value in fields.items()})


def require_arrays(given: GivenEmbedding, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Raises BadMedia when one of the `required` arrays is missing, or one is there that nobody knows."""
    missing = [name for name in required if name not in given.arrays]
    unknown = sorted(given.arrays.keys() - {*required, *optional})
    if missing:
        raise BadMedia(f"the embedding needs {missing[0]} beside it: send an object with both")
    if unknown:
        known = ", ".join([*required, *optional]) or "none"
        raise BadMedia(f"the embedding has an unknown field {unknown[0]!r}; known besides the tensor: {known}")


def integers(array: Metadata, count: int) -> tuple[int, ...]:
    """Its values as `count` positive whole numbers. Raises BadMedia."""
    values = array.values
    if len(values) != count or not all(type(value) is int and value > 0 for value in values):
        raise BadMedia(f"{array.name} must be {count} positive integers, not {list(values[: count + 1])}")
    return tuple(int(value) for value in values)


def fit_rows(given: GivenEmbedding, metadata: ItemMetadata, width: int, limits: Limits) -> torch.Tensor:
    """The rows, once their number and width are what this model's prompt and language model expect. Raises BadMedia."""
    num_tokens, columns = given.rows.shape
    name = f"{metadata.modality}_embeds"
    if columns != width:
        raise BadMedia(f"{name} has {columns} columns; this model's embeddings have {width}")
    if num_tokens != metadata.num_tokens:
        raise BadMedia(f"{name} has {num_tokens} rows; with what is sent beside it, it must have {metadata.num_tokens}")
    if num_tokens > limits.tokens:
        raise LimitExceeded(f"{name} has {num_tokens} rows, more than the limit of {limits.tokens} tokens")
    return given.rows


def _unpack(data: bytes) -> dict[str, Field]:
    start = len(_MAGIC) + _LENGTH_BYTES
    end = start + int.from_bytes(data[len(_MAGIC) : start], "little")
    if not is_given(data) or end > len(data):
        raise BadMedia("the embedding is cut off")
    try:
        header = json.loads(data[start:end])
    except (ValueError, RecursionError) as error:
        raise BadMedia("the embedding's header is damaged") from error
    fields: dict[str, Field] = {}
    position = end
    for entry in header if isinstance(header, list) else [None]:
        match entry:
            case [str(name), int(length)] if 0 <= length <= len(data) - position:
                fields[name] = data[position : position + length]
                position += length
            case [str(name), list(numbers)] if all(type(number) in (int, float) for number in numbers):
                fields[name] = numbers
            case _:
                raise BadMedia("the embedding's header is damaged")
    return fields


def _array(name: str, value: Field) -> Metadata:
    """A short list of numbers of ordinary size."""
    if isinstance(value, bytes):
        tensor = read_tensor(value, name)
        numbers: Sequence[int | float] = tensor.flatten().tolist() if tensor.numel() <= _MAX_NUMBERS else ()
    else:
        numbers = value
    if not 0 < len(numbers) <= _MAX_NUMBERS or not all(abs(number) < _LARGE for number in numbers):
        raise BadMedia(f"{name} must be 1 to {_MAX_NUMBERS} numbers of ordinary size")
    return Metadata.of(name, numbers)
