"""Ends an engine's processes when the worker that started them is gone, however it went.

vLLM's engine process outlives a parent that was killed, and would hold its device and memory. vLLM runs `install` in
every process of an engine, as a general plug-in; outside Triptych's engines it does nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time

from configs.environment import read_environment

logger = logging.getLogger(__name__)

_PERIOD_S = 1.0
_GRACE_S = 15.0


def engine_worker() -> int | None:
    """The worker whose engine's own process this is, that is a child of the one named in the environment; else None."""
    worker = read_environment().engine_parent
    return worker if worker == os.getppid() else None


def install() -> None:
    """Start watching, if this process is an engine's own."""
    worker = engine_worker()
    if worker is not None:
        threading.Thread(target=_watch, args=(worker,), name="triptych-parent-watch", daemon=True).start()


def _watch(worker: int) -> None:
    while os.getppid() == worker:
        time.sleep(_PERIOD_S)
    logger.warning("the worker %d is gone: ending its engine", worker)
    # SIGTERM first: the engine then frees its shared memory and ends its own workers.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(1)
