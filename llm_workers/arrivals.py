"""Tells who waits in an engine's scheduler that a request has come, of which vLLM's scheduler hears between two steps.

vLLM repeats a step without work every millisecond for as long as a request waits for something. Whoever makes such a
step last longer, because it takes a core from what is waited for, needs to end it for a request that can be worked on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

_listeners: list[Callable[[], None]] = []


def install() -> None:
    """Begin to listen in this process. Idempotent."""
    # Here, since vLLM loads its plug-ins in processes that have no engine, too.
    from vllm.v1.engine.core import EngineCore

    if hasattr(EngineCore.preprocess_add_request, "__wrapped__"):
        return

    # vLLM's input thread calls it with every request, right before the scheduler can take the request.
    @functools.wraps(EngineCore.preprocess_add_request)
    def preprocess_add_request(core: EngineCore, request: Any) -> Any:
        prepared = preprocess_add_request.__wrapped__(core, request)
        for tell in _listeners:
            tell()
        return prepared

    EngineCore.preprocess_add_request = preprocess_add_request


def listen(tell: Callable[[], None]) -> None:
    """Call `tell`, in vLLM's input thread, whenever a request has come. Without `install` it is never called."""
    _listeners.append(tell)


def forget(tell: Callable[[], None]) -> None:
    """Call it no longer."""
    _listeners.remove(tell)
