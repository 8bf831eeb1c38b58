"""Free ports: free, and none that the system may give to somebody's outgoing connection meanwhile."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from configs import ports
from configs.ports import free_port

_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_a_port_that_is_used_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", free_port("127.0.0.1")))
        port: int = used.getsockname()[1]
        monkeypatch.setattr(ports, "PORTS", range(port, port + 1))
        with pytest.raises(OSError, match="no port"):
            free_port("127.0.0.1")
    assert free_port("127.0.0.1") == port


def test_no_port_of_outgoing_connections_is_given() -> None:
    assert free_port("") < int(_OUTGOING.read_text().split()[0])


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(OSError, match="assign"):
        free_port("192.0.2.1")
