"""Serve's switches are read where Serve's processes begin, so a name that Serve no longer knows would go unnoticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.serve_environment import REPLICA_ENVIRONMENT, front_environment

_READ_BACK = (
    "import json, sys; from ray.serve._private import constants; "
    "print(json.dumps({name: getattr(constants, name) for name in sys.argv[1:]}))"
)


def _as_serve_reads(environment: dict[str, str]) -> dict[str, object]:
    """What Serve makes of each of the variables, as a new process of its would."""
    command = [sys.executable, "-c", _READ_BACK, *environment]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=120
    )
    read: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return read


def test_serve_knows_every_variable(tmp_path: Path) -> None:
    environment = front_environment(tmp_path) | {
        name: value for name, value in REPLICA_ENVIRONMENT.items() if not name.endswith("MESSAGE_LENGTH")
    }
    read = _as_serve_reads(environment)
    for name, value in environment.items():
        expected = value in ("1",) if isinstance(read[name], bool) else type(read[name])(value)
        assert read[name] == expected, name


def test_two_services_share_no_port(tmp_path: Path) -> None:
    first, second = front_environment(tmp_path / "a"), front_environment(tmp_path / "b")
    ports = [value for service in (first, second) for name, value in service.items() if name.endswith("_PORT")]
    assert len(ports) == 6
    assert len(set(ports)) == 6


def test_serve_keeps_its_own_proxy_where_haproxy_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert front_environment(tmp_path) == {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
