"""torch tensors as flat byte buffers and back, without copying, for every dtype of the wire (bfloat16 included)."""

import contextlib
import mmap
from dataclasses import dataclass

import numpy as np
import torch

from transfer.dtypes import DTYPE_BYTES

_HUGE_FROM_BYTES = 8 * 2**20
_SMALL_COPY_BYTES = 2**18
"""A copy of fewer bytes takes less time than what numpy and torch do before they copy."""
_TORCH_DTYPES: dict[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in _TORCH_DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """The wire name of a torch dtype; ValueError when embeddings may not have it."""
    if dtype not in _NAMES:
        raise ValueError(f"{dtype} is not a dtype of the wire, expected one of {sorted(DTYPE_BYTES)}")
    return _NAMES[dtype]


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a wire name; ValueError when unknown."""
    if name not in _TORCH_DTYPES:
        raise ValueError(f"unknown dtype {name!r}, expected one of {sorted(DTYPE_BYTES)}")
    return _TORCH_DTYPES[name]


def tensor_to_buffer(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, flat, without a copy when it is already a contiguous CPU tensor.

    The memoryview keeps the storage alive. Writing to the tensor afterwards changes what is sent.
    """
    name = dtype_name(tensor.dtype)
    if tensor.requires_grad:
        tensor = tensor.detach()
    if not (tensor.is_cpu and tensor.is_contiguous()):
        tensor = tensor.to("cpu").contiguous()
    if name == "bfloat16":  # numpy has no such type
        tensor = tensor.view(torch.int16)
    return tensor.numpy().reshape(-1).view(np.uint8).data


@dataclass(frozen=True, slots=True, eq=False)
class HostEmbedding:
    """Rows of an embedding in host memory: `shape` is [num_tokens, width], `memory` their bytes, not written again."""

    memory: memoryview
    shape: tuple[int, int]
    dtype: str

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "HostEmbedding":
        """That of a tensor [num_tokens, width]; copied when it is not a contiguous CPU tensor."""
        return cls(tensor_to_buffer(tensor), (tensor.shape[0], tensor.shape[1]), dtype_name(tensor.dtype))

    @property
    def nbytes(self) -> int:
        """Length of its memory."""
        return self.memory.nbytes


def copy_bytes(source: memoryview, target: memoryview) -> None:
    """Copy all bytes of one flat buffer to another of that length."""
    if target.nbytes < _SMALL_COPY_BYTES:
        target[:] = source
    else:
        np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


def copy_tensor(tensor: torch.Tensor, target: memoryview) -> None:
    """Copy a tensor of any device, and however strided, into a writable flat buffer of its length."""
    if target.nbytes < _SMALL_COPY_BYTES:
        copy_bytes(tensor_to_buffer(tensor), target)
    else:
        buffer_to_tensor(target, tuple(tensor.shape), dtype_name(tensor.dtype)).copy_(tensor)


def empty_buffer(num_bytes: int) -> memoryview:
    """Writable memory of this process, its content undefined."""
    if num_bytes < _HUGE_FROM_BYTES:
        return torch.empty(num_bytes, dtype=torch.uint8).numpy().data
    # The heap would map this anew each time; in huge pages that costs half (a page fault for 2 MiB, not for 4 KiB).
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def buffer_to_tensor(buffer: memoryview, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """The tensor over a writable flat buffer, which it keeps alive; nothing is copied."""
    return torch.frombuffer(buffer, dtype=torch_dtype(dtype)).view(shape)
