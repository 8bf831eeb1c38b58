"""Devices by name: makes a torch device usable, or says plainly why it is not."""

from __future__ import annotations

import ctypes

import torch

from configs.environment import KEPT_HEAP_BYTES, MAPPED_FROM_BYTES, set_environment_defaults
from npu_kernels.registry import load_backend

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


_CPU_KERNELS_KEPT = 64
"""Several times what one pass of a tower has shapes."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""


def resolve_device(name: str) -> torch.device:
    """A device that exists on this machine, from "cpu", "cuda", "cuda:1", "npu" or "npu:0".

    Loads the vendor's PyTorch extension where one is needed. Raises ValueError when the device is not there.
    """
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda", "npu"):
        raise ValueError(f"unknown device {name!r}; known: cpu, cuda[:index], npu[:index]")
    if kind == "npu":
        load_backend("npu")  # registers the device type with torch
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"not a device: {name!r}") from error
    if kind == "cpu":
        return device
    module = torch.get_device_module(kind)
    if not module.is_available():
        raise ValueError(f"no {kind} device is available here")
    if device.index is not None and device.index >= module.device_count():
        raise ValueError(f"{name!r} does not exist: this machine has {module.device_count()} {kind} device(s)")
    return device


def prepare_process(device: torch.device) -> None:
    """Have this process keep the memory of activations, and fewer of the kernels that oneDNN makes for each shape.

    For a CPU, and before anything is computed there. Memory that glibc gives back comes again as pages that have to be
    cleared, which is a twentieth of a tower's time. Items of many sizes hardly repeat a shape, and the thousand kernels
    kept by default take hundreds of MiB.
    """
    if device.type != "cpu":
        return
    set_environment_defaults({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(_CPU_KERNELS_KEPT)})
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; other C libraries have none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_HEAP_BYTES)


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """One of the supported floating types. Raises ValueError for any other."""
    if isinstance(dtype, torch.dtype):
        if dtype in DTYPES.values():
            return dtype
    elif dtype in DTYPES:
        return DTYPES[dtype]
    raise ValueError(f"unsupported dtype {dtype!r}; known: {', '.join(DTYPES)}")


def synchronize(device: torch.device) -> None:
    """Wait until the work queued on the device is done; errors of that work are raised here."""
    if device.type != "cpu":
        torch.get_device_module(device.type).synchronize(device)
