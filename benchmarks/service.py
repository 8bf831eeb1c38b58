"""Starts servers for a measurement and ends them: `triptych serve`, or any other program that answers `/health`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx

from configs.ports import free_port

_START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 120.0
# As in `llm_workers/engine_config.py`, whose import would load all of vLLM.
_ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def random_checkpoint(family: str, folder: Path) -> Path:
    """A new random checkpoint in `folder`; `family` as `tools/make_random_checkpoint.py` knows it."""
    checkpoint = folder / "model"
    tool = Path(__file__).parents[1] / "tools" / "make_random_checkpoint.py"
    subprocess.run([sys.executable, str(tool), str(checkpoint), "--family", family], check=True)
    return checkpoint


def plain_vllm(
    model: Path, name: str, *, max_model_len: int, kv_cache_mib: int, num_threads: int
) -> tuple[list[str], dict[str, str]]:
    """Arguments of Python and variables for what `vllm serve` starts: one engine of the whole model, float32, CPU."""
    arguments = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", name]
    arguments += ["--dtype", "float32", "--max-model-len", str(max_model_len), "--enforce-eager"]
    arguments += ["--kv-cache-memory-bytes", str(kv_cache_mib * 2**20)]
    # As Triptych's engines on a CPU: in the engine's own process, since vLLM's worker process spins between steps.
    arguments += ["--distributed-executor-backend", _ONE_PROCESS]
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(num_threads),
        "TORCH_COMPILE_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return arguments, environment


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
    port = free_port("127.0.0.1")
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
