"""Devices by name: makes a torch device usable, or says plainly why it is not."""

from __future__ import annotations

import torch

from configs.environment import set_environment_defaults
from npu_kernels.registry import load_backend

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


_CPU_KERNELS_KEPT = 64
"""Several times what one pass of a tower has shapes."""


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


def keep_few_kernels(device: torch.device) -> None:
    """Have oneDNN keep fewer of the kernels that it makes for each shape; before the first of them is made.

    Items of many sizes hardly repeat a shape, and the thousand kernels kept by default take hundreds of MiB.
    """
    if device.type == "cpu":
        set_environment_defaults({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(_CPU_KERNELS_KEPT)})


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
