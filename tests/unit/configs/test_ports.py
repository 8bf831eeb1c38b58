"""Free ports: free, and none that the system may give to somebody's outgoing connection meanwhile."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs import ports
from configs.ports import free_port

_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")


@pytest.fixture
def only_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port that is free and that nobody was promised, and the only one that there is."""
    port = free_port("127.0.0.1")
    ports._promises.pop().close()
    monkeypatch.setattr(ports, "PORTS", range(port, port + 1))
    yield port
    while ports._promises:
        ports._promises.pop().close()


def test_a_port_that_is_used_is_not_given(only_port: int) -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", only_port))
        with pytest.raises(OSError, match="no port"):
            free_port("127.0.0.1")
    assert free_port("127.0.0.1") == only_port


def test_a_port_is_promised_once(only_port: int) -> None:
    """Two who choose, and bind only later what they have chosen, must not meet: not in one process, nor in two."""
    program = f"""
from configs import ports
ports.PORTS = range({only_port}, {only_port + 1})
print(ports.free_port("127.0.0.1"), flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == f"{only_port}\n"
        with pytest.raises(OSError, match="no port"):
            free_port("127.0.0.1")
        other.stdin.write("\n")
    assert free_port("127.0.0.1") == only_port
    with pytest.raises(OSError, match="no port"):
        free_port("127.0.0.1")


def test_no_port_of_outgoing_connections_is_given() -> None:
    assert free_port("") < int(_OUTGOING.read_text().split()[0])


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(OSError, match="assign"):
        free_port("192.0.2.1")
