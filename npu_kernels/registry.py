"""Chooses the implementation of each operator: a backend's name, a table by operator, or what suits the device."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import torch

from npu_kernels.interface import OP_NAMES, Ops

REFERENCE = "torch"
_BACKEND_MODULES: dict[str, str] = {
    "torch": "npu_kernels.torch_ops",
    "cpu": "npu_kernels.cpu_ops",
    "cuda": "npu_kernels.cuda_ops",
    "npu": "npu_kernels.ascend",
}
_BACKEND_OF_DEVICE: dict[str, str] = {"cpu": "cpu", "cuda": "cuda", "npu": "npu"}


class Backend(Protocol):
    """What a backend's module offers. Its vendor library is imported when the module is, hence only when chosen."""

    def provided_ops(self, device: torch.device) -> dict[str, Callable[..., object]]:
        """The operators this backend implements on that device, by name; the reference stands in for the others."""
        ...


def load_backend(name: str) -> Backend:
    """Import a backend. Raises ValueError for an unknown name and for one whose library is not installed."""
    if name not in _BACKEND_MODULES:
        raise ValueError(f"unknown ops backend {name!r}; known: {', '.join(sorted(_BACKEND_MODULES))}")
    try:
        return cast(Backend, importlib.import_module(_BACKEND_MODULES[name]))
    except ImportError as error:
        raise ValueError(f"the ops backend {name!r} cannot be loaded here: {error}") from error


def select_ops(spec: str | Mapping[str, str], device: torch.device) -> Ops:
    """The operators to run on `device`.

    `spec` is "auto" (the device's own backend), a backend's name, or a table {operator: backend}, in which operators
    not named are chosen as by "auto". A backend asked for by name in a table must provide that operator; asked for as
    a whole, it may leave some to the reference. Raises ValueError for unknown names.
    """
    table: Mapping[str, str] = {} if isinstance(spec, str) else spec
    unknown = sorted(set(table) - set(OP_NAMES))
    if unknown:
        raise ValueError(f"unknown operators in the ops table: {', '.join(unknown)}; known: {', '.join(OP_NAMES)}")
    default = _default_backend(device) if not isinstance(spec, str) or spec == "auto" else spec

    reference = load_backend(REFERENCE).provided_ops(device)
    offers = {name: load_backend(name).provided_ops(device) for name in {default, *table.values()}}
    chosen: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for op in OP_NAMES:
        backend = table.get(op, default)
        if op in offers[backend]:
            chosen[op], sources[op] = offers[backend][op], backend
        elif op in table:
            raise ValueError(f"the ops backend {backend!r} has no {op!r} on {device}")
        else:
            chosen[op], sources[op] = reference[op], REFERENCE
    return Ops(**chosen, sources=sources)


def _default_backend(device: torch.device) -> str:
    return _BACKEND_OF_DEVICE.get(device.type, REFERENCE)
