"""How much memory the processes of a server hold."""

from __future__ import annotations

import psutil

from tests.e2e.servers import Server


def memory_of(server: Server) -> dict[str, int]:
    """Bytes that belong to each process of this server alone, by its id and name."""
    sizes = {}
    for process in psutil.Process(server.process.pid).children(recursive=True):
        try:
            sizes[f"{process.pid} {process.name()}"] = process.memory_full_info().uss
        except psutil.NoSuchProcess:
            continue
    return sizes
