"""The process behind `triptych serve`: starts the service, says when it is ready, ends it when its input closes."""

from __future__ import annotations

import argparse
import base64
import json
import logging
import os
import shlex
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.cli.png import png_file
from cluster.cli.processes import adopt_orphans, descendants, end_descendants, own_children, reap_adopted
from cluster.cli.segments import Segments

if TYPE_CHECKING:
    from configs import TriptychConfig

_ORPHAN_GRACE_S = 20.0
_REAP_EVERY_S = 5.0


def main() -> int:
    """Run one service; returns 0 when it was ended, 1 when it could not start."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--address")
    arguments = parser.parse_args()
    stop = threading.Event()
    threading.Thread(target=_wait_for_end_of_input, args=(stop,), daemon=True).start()
    adopt_orphans()
    return serve(arguments.config, arguments.port, arguments.address, stop)


def serve(config_path: Path, port: int, ray_address: str | None, stop: threading.Event) -> int:
    """One service, from its first process to its last."""
    # Under /tmp whatever TMPDIR says: paths of Unix sockets are at most 107 bytes long, and a node's id takes 56.
    with tempfile.TemporaryDirectory(prefix="triptych-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        return _serve(config_path, port, ray_address, stop, Path(folder))


def _serve(config_path: Path, port: int, ray_address: str | None, stop: threading.Event, folder: Path) -> int:
    """As `serve`, with a folder for files that last as long as the service."""
    progress = Progress()
    progress("loading")
    # Ray's and vLLM's news are for the logs of the replicas; what they say on their way in is not about this service.
    logging.disable(logging.WARNING)
    from configs import load_config

    if ray_address is None:
        _set_ray_up(folder)
    from cluster.cli.sweep import sweep_shared_memory
    from cluster.runtime import Service, StartupFailed, StartupStopped

    config = load_config(config_path)
    service = Service(config, port=port, ray_address=ray_address)
    status = 0
    try:
        address = service.start(progress, stop=stop)
        print(f"Triptych is ready: {address.url}\n{curl_line(address.url, config)}", flush=True)
        started = own_children()  # Ray's own processes, which Ray waits for
        while not stop.wait(_REAP_EVERY_S):
            reap_adopted(started)
    except StartupStopped:
        pass
    except StartupFailed as error:
        print(f"the service did not start:\n{error}", file=sys.stderr, flush=True)
        status = 1
    finally:
        segments = Segments()
        segments.look(descendants())
        service.close()
        end_descendants(_ORPHAN_GRACE_S, segments)
        sweep_shared_memory()
    return status


def _set_ray_up(folder: Path) -> None:
    """The variables of a Ray of this service's own, which Ray reads when it is imported."""
    from cluster.serve_environment import CONTROL_ENVIRONMENT, front_environment
    from configs.environment import read_environment, set_environment, set_environment_defaults

    set_environment({"RAY_AUTH_MODE": "token"})  # the default, which Ray warns about
    set_environment_defaults(dict(CONTROL_ENVIRONMENT))
    if read_environment().haproxy is not False:
        set_environment(front_environment(folder))


class Progress:
    """Prints lines with the seconds since it was made."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"{time.monotonic() - self._begin:6.1f} s  {line}", flush=True)


def curl_line(url: str, config: TriptychConfig) -> str:
    """One command that asks a running service, with a picture in the question where the service takes one."""
    content: object = "Hello"
    if config.encoder is not None:
        picture = base64.b64encode(plain_png(56, (255, 0, 0))).decode()
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
            {"type": "text", "text": "What colour is this?"},
        ]
    body = {
        "model": config.api_model_name,
        "max_tokens": 32,
        "messages": [{"role": "user", "content": content}],
    }
    return f"curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"


def plain_png(side: int, rgb: tuple[int, int, int]) -> bytes:
    """A PNG file of one colour, `side` pixels square."""
    return png_file(side, [bytes(rgb) * side] * side)


def _wait_for_end_of_input(stop: threading.Event) -> None:
    """Set `stop` when the supervisor closes the pipe or is gone."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
