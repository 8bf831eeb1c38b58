"""Reads one tensor out of a stranger's .npy file or torch.save file: no code of it runs, no memory beyond its size."""

from __future__ import annotations

import io
import math
import pickletools
import zipfile

import numpy as np
import torch

from transfer.errors import BadMedia

_NUMPY_MAGIC = b"\x93NUMPY"
_MAX_ITEM_BYTES = 8
_ZIP_MAGIC = b"PK\x03\x04"
_MAX_PICKLE_BYTES = 4096
"""A plain tensor's takes about 200."""
_REBUILD = "torch._utils _rebuild_tensor_v2"
_TENSOR_GLOBALS = {_REBUILD, "collections OrderedDict"}
_STORAGE = "Storage"
_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32)


def read_tensor(data: bytes, what: str) -> torch.Tensor:
    """The tensor, dense and contiguous, on the host; it may share memory with `data`.

    Args:
        what: names the tensor in messages.

    Raises:
        BadMedia: not such a file, or one that holds anything else than one plain tensor of numbers.
    """
    if data.startswith(_NUMPY_MAGIC):
        return _read_numpy(data, what)
    if data.startswith(_ZIP_MAGIC):
        return _read_torch(data, what)
    raise BadMedia(f"{what} is neither a file of torch.save nor one of numpy.save")


def _read_numpy(data: bytes, what: str) -> torch.Tensor:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
        # Both refuse long headers.
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            version
        ]
        shape, is_column_major, dtype = read_header(stream)  # type: ignore[no-untyped-call]
    except MemoryError:
        raise
    except Exception as error:  # the header is a Python literal, whose parser may raise anything on hostile bytes
        raise BadMedia(f"{what} is not a readable file of numpy.save") from error
    if dtype.kind not in "fi" or dtype.itemsize > _MAX_ITEM_BYTES:
        raise BadMedia(f"{what} has the type {dtype}; send float32 or float16")
    body = data[stream.tell() :]
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(body):
        raise BadMedia(f"{what} is {list(shape)} of {dtype} by its header, but {len(body)} bytes follow")
    array = np.frombuffer(body, dtype).reshape(shape, order="F" if is_column_major else "C")
    # A copy in this machine's byte order, which is small beside what the tensor costs later and may be written to.
    return _plain(torch.from_numpy(np.array(array, dtype.newbyteorder("="), order="C")), what, len(body))


def _read_torch(data: bytes, what: str) -> torch.Tensor:
    """As torch.load, but kept from all that could grow: compressed parts, other objects, views larger than the data."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = archive.infolist()
            stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
            if not stored or sum(part.file_size for part in parts) > len(data):
                raise BadMedia(f"{what} is a compressed archive: write it with torch.save")
            pickled = [part for part in parts if part.filename.rpartition("/")[2] == "data.pkl"]
            if len(pickled) != 1 or pickled[0].file_size > _MAX_PICKLE_BYTES or not _is_one_tensor(archive, pickled[0]):
                raise BadMedia(f"{what} does not hold one plain tensor: give torch.save nothing else")
        tensor = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except (MemoryError, BadMedia):
        raise
    except Exception as error:  # readers meeting hostile bytes may raise anything; the item alone must fail
        raise BadMedia(f"{what} is not a readable file of torch.save") from error
    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise BadMedia(f"{what} does not hold one plain tensor: give torch.save nothing else")
    return _plain(tensor, what, len(data))


def _is_one_tensor(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> bool:
    """Whether the pickle names no more than what a plain tensor is made of. Reads opcodes; runs nothing."""
    named = [argument for opcode, argument, _ in pickletools.genops(archive.read(part)) if "GLOBAL" in opcode.name]
    return named.count(_REBUILD) == 1 and all(
        name in _TENSOR_GLOBALS or (str(name).startswith("torch ") and str(name).endswith(_STORAGE)) for name in named
    )


def _plain(tensor: torch.Tensor, what: str, num_bytes: int) -> torch.Tensor:
    if tensor.dtype not in _TYPES:
        raise BadMedia(f"{what} has the type {tensor.dtype}; send float32, bfloat16 or float16")
    if tensor.nbytes > num_bytes:
        raise BadMedia(f"{what} has {tensor.nbytes} bytes as a whole, more than were sent: send a contiguous tensor")
    return tensor.detach().contiguous()
