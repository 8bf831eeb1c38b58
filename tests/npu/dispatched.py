"""Names of the operators that a piece of work calls, as a device would be asked for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name.replace("::", "."))
        return func(*args, **(kwargs or {}))


def dispatched_operators(work: Callable[[], object]) -> set[str]:
    """As "aten.linear" or "npu.npu_swiglu"; none that an operator on the way is made of."""
    recorder = _Recorder()
    with torch.inference_mode(), recorder:
        work()
    return recorder.names
