"""Memory of devices: how much is free, and which errors say that there was not enough."""

from __future__ import annotations

from pathlib import Path

import torch

_TEXTS = ("out of memory", "can't allocate memory", "not enough memory")
"""What PyTorch's allocators of the host and of NPUs say in a RuntimeError."""
_ONEDNN = ("could not create a primitive", "could not create a memory object", "could not execute a primitive")
"""All that oneDNN says when its own memory is refused; with more words these are other errors."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less memory, or a smaller piece of work, would have avoided the error."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return str(error) in _ONEDNN or any(text in str(error).lower() for text in _TEXTS)


def free_bytes(device: torch.device) -> int:
    """Bytes that may still be taken on the device; of the host's memory for a CPU."""
    if device.type == "cpu":
        return _free_host_bytes()
    free, _ = torch.get_device_module(device.type).mem_get_info(device)
    return int(free)


def release_cached(device: torch.device) -> None:
    """Give back what the device's allocator keeps for later."""
    if device.type != "cpu":
        torch.get_device_module(device.type).empty_cache()


def _free_host_bytes() -> int:
    """What the machine has left, or the container that this process is in."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        reclaimable = int(statistics.get("inactive_file", 0))
    except (OSError, ValueError):  # not in a container that has a limit of its own
        return free
    return free if limit == "max" else min(free, int(limit) - used + reclaimable)
