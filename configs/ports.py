"""A TCP port for libraries that cannot bind port 0 themselves."""

from __future__ import annotations

import socket


def free_port(host: str) -> int:
    """A port that is free now on `host`, an address of this machine; "" for all of them."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
