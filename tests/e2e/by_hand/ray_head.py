"""A Ray head node of this machine, started, used and ended with Ray's own commands as a platform team would."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from cluster.serve_environment import front_environment
from configs.ports import free_port
from tests.e2e.servers import Server

_LOOPBACK = "127.0.0.1"
_COMMAND_TIMEOUT_S = 300.0
_END_TIMEOUT_S = 60.0
_START_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class RayHead:
    """A running head node.

    Attributes:
        process: `ray start --head --block`, with everything of the node below it.
        dashboard: address of what `serve deploy` talks to.
        environment: variables with which its commands are called.
        port: where the services deployed on it are to listen.
    """

    process: subprocess.Popen[bytes]
    dashboard: str
    environment: dict[str, str]
    port: int
    log: Path

    @property
    def service(self) -> Server:
        """What is deployed on it."""
        return Server(self.process, self.port, self.log)

    def serve(self, *arguments: str) -> None:
        """One command of Ray Serve.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        command = [_tool("serve"), *arguments, "--address", self.dashboard]
        subprocess.run(command, env=self.environment, check=True, timeout=_COMMAND_TIMEOUT_S)

    def application(self, name: str) -> dict[str, Any]:
        """Serve's own report about an application."""
        answer = self.ask_dashboard("/api/serve/applications/")
        answer.raise_for_status()
        application: dict[str, Any] = answer.json()["applications"][name]
        return application

    def ask_dashboard(self, path: str) -> requests.Response:
        """A path of Ray's own HTTP interface, with the cluster's token."""
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        return requests.get(self.dashboard + path, headers=token, timeout=30)


@contextlib.contextmanager
def ray_head(folder: Path) -> Iterator[RayHead]:
    """`ray start --head` on loopback and free ports; every process of it ends with the context."""
    dashboard_port = free_port(_LOOPBACK)
    log = folder / "ray.log"
    # Under /tmp whatever TMPDIR says: paths of Unix sockets are at most 107 bytes long.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as short:
        environment = {
            **os.environ,
            **front_environment(Path(short)),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
        }
        command = [_tool("ray"), "start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={short}/ray"]
        command += [f"--node-ip-address={_LOOPBACK}", f"--port={free_port(_LOOPBACK)}"]
        command += ["--include-dashboard=true", f"--dashboard-host={_LOOPBACK}", f"--dashboard-port={dashboard_port}"]
        command += [f"--dashboard-agent-listen-port={free_port('')}", f"--ray-client-server-port={free_port('')}"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        dashboard = f"http://{_LOOPBACK}:{dashboard_port}"
        head = RayHead(process, dashboard, environment, free_port(_LOOPBACK), log)
        try:
            _wait_for_dashboard(head)
            yield head
            head.serve("shutdown", "--yes")
        finally:
            _end(process)


def _tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _wait_for_dashboard(head: RayHead) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and head.process.poll() is None:
        with contextlib.suppress(requests.RequestException):
            if head.ask_dashboard("/api/serve/applications/").ok:
                return
        time.sleep(0.5)
    raise AssertionError(f"Ray did not come up:\n{head.service.log_end()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the node, and whatever of it does not end with it."""
    node = psutil.Process(process.pid)
    below = node.children(recursive=True)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_TIMEOUT_S)
    _, left = psutil.wait_procs([node, *below], timeout=10)
    for other in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            other.kill()
    process.wait(_END_TIMEOUT_S)
