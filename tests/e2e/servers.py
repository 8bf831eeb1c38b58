"""Starts servers as a user would, as processes of their own, waits for them, and ends them by their ids."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import requests
from openai import OpenAI

from benchmarks.service import plain_vllm
from configs.ports import free_port

_START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 120.0
_KV_CACHE_MIB = 192


class Server:
    """One server process and its address."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    @property
    def url(self) -> str:
        """Base address."""
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> OpenAI:
        """The openai package for this server; it never tries twice, so that every failure is seen."""
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=180)

    def wait_until_ready(self) -> None:
        """Wait until the server answers.

        Raises:
            AssertionError: it ended or did not answer in time; with the end of its log.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.url}/health", timeout=5).ok:
                    return
            time.sleep(0.5)
        raise AssertionError(f"the server did not come up:\n{self.log_end()}")

    def log_end(self) -> str:
        """The last part of the log."""
        return self.log.read_text(errors="replace")[-6000:]

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for whatever is left after a long wait."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise


@contextlib.contextmanager
def triptych_server(config: Path, folder: Path) -> Iterator[Server]:
    """`triptych serve` on a free port."""
    port = free_port("127.0.0.1")
    triptych = Path(sys.executable).with_name("triptych")
    command = [str(triptych), "serve", str(config), "--port", str(port)]
    with _started(command, port, folder / f"triptych-{port}.log", {}) as server:
        yield server


@contextlib.contextmanager
def reference_server(model: Path, name: str, max_model_len: int, folder: Path) -> Iterator[Server]:
    """vLLM's own server (what `vllm serve` starts) with the whole model in one engine, float32."""
    port = free_port("127.0.0.1")
    arguments, environment = plain_vllm(
        model, name, max_model_len=max_model_len, kv_cache_mib=_KV_CACHE_MIB, num_threads=1
    )
    arguments += ["--mm-processor-cache-gb", "0", "--limit-mm-per-prompt", '{"image": 4, "video": 0}']
    command = [sys.executable, *arguments, "--host", "127.0.0.1", "--port", str(port)]
    with _started(command, port, folder / f"reference-{port}.log", environment) as server:
        yield server


@contextlib.contextmanager
def _started(command: list[str], port: int, log: Path, environment: dict[str, str]) -> Iterator[Server]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | environment, start_new_session=True
        )
    server = Server(process, port, log)
    try:
        yield server
    finally:
        server.stop()
