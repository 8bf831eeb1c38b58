"""The hot operations of an encoder, one right answer each: interface, reference, vendor backends, registry, device."""

from npu_kernels.device import prepare_process, resolve_device, resolve_dtype, synchronize
from npu_kernels.interface import OP_NAMES, Ops
from npu_kernels.linear import Linear
from npu_kernels.memory import free_bytes, is_out_of_memory, release_cached
from npu_kernels.registry import select_ops
from npu_kernels.row_blocks import by_row_blocks
from npu_kernels.segments import Segments
from npu_kernels.self_test import AttentionShape, KernelMismatch, check_ops

__all__ = [
    "OP_NAMES",
    "AttentionShape",
    "KernelMismatch",
    "Linear",
    "Ops",
    "Segments",
    "by_row_blocks",
    "check_ops",
    "free_bytes",
    "is_out_of_memory",
    "prepare_process",
    "release_cached",
    "resolve_device",
    "resolve_dtype",
    "select_ops",
    "synchronize",
]
