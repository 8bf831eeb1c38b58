"""Starts servers for a measurement and ends them: `triptych serve`, or any other program that answers `/health`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx

_START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 120.0


def random_checkpoint(family: str, folder: Path) -> Path:
    """A new random checkpoint in `folder`; `family` as `tools/make_random_checkpoint.py` knows it."""
    checkpoint = folder / "model"
    tool = Path(__file__).parents[1] / "tools" / "make_random_checkpoint.py"
    subprocess.run([sys.executable, str(tool), str(checkpoint), "--family", family], check=True)
    return checkpoint


@contextlib.contextmanager
def running_service(config: Path, log: Path) -> Iterator[str]:
    """A service of this configuration on a free port; yields its base URL.

    Raises:
        RuntimeError: it did not come up; with the end of its log.
    """
    with running_server(["-m", "cluster.cli", "serve", str(config)], {}, log) as url:
        yield url


@contextlib.contextmanager
def running_server(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[str]:
    """A Python program on loopback and a free port, which it takes as `--port`; yields its base URL.

    Raises:
        RuntimeError: it did not come up; with the end of its log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, *arguments, "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | environment, start_new_session=True
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_STOP_TIMEOUT_S)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        time.sleep(0.5)
    raise RuntimeError(f"the service did not come up:\n{log.read_text(errors='replace')[-4000:]}")
