"""`triptych serve`: runs a service in the foreground and ends all of it, however the command itself ends.

    triptych serve  ->  service process  ->  Ray, replicas, engines
      (signals)    pipe  (cluster.runtime)

Signals reach this process alone: Ray puts handlers of its own in the process that starts it. The service process ends
the service when the pipe closes, which it also does when this process is killed.
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from cluster.cli.processes import adopt_orphans, end_descendants
from cluster.cli.segments import Segments

if TYPE_CHECKING:
    from argparse import _SubParsersAction

DEFAULT_PORT = 8000
_POLL_S = 0.2
# The replicas and Serve's controller have 30 s each; then whatever is left is killed.
_CLOSE_TIMEOUT_S = 100.0
_ORPHAN_GRACE_S = 20.0


def add_arguments(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this verb to the command line."""
    parser = verbs.add_parser("serve", help="run a service until Ctrl-C", description=__doc__.partition("\n")[0])
    parser.add_argument("config", type=Path, metavar="CONFIG", help="deployment file, for example configs/demo.yaml")
    parser.add_argument(
        "--port", type=_port, default=DEFAULT_PORT, metavar="N", help="HTTP port (default: %(default)s)"
    )
    parser.add_argument(
        "--address",
        metavar="RAY",
        help="join this running Ray cluster; default: $RAY_ADDRESS, else a cluster of its own on this machine",
    )
    parser.set_defaults(run=lambda parsed: run(parsed.config, parsed.port, parsed.address))


def run(config: Path, port: int, address: str | None) -> int:
    """Serve until a signal; returns 0 after one, 1 when the service could not start or died."""
    from configs import ConfigError, load_config
    from configs.environment import read_environment

    ray_address = address or read_environment().ray_address
    try:
        load_config(config)
        if ray_address is None:
            _check_port(port)
    except (ConfigError, _PortInUse) as error:
        print(error, file=sys.stderr)
        return 1
    command = [sys.executable, "-m", "cluster.cli.service_process", str(config), "--port", str(port)]
    if ray_address is not None:
        command += ["--address", ray_address]
    return Supervisor(command).run()


class Supervisor:
    """Runs the service process; made in the main thread, since it takes over the signals that end a service."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._signal: signal.Signals | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._on_signal)

    def run(self) -> int:
        """Wait for the end of the service, asked for or not; nothing that it started is left afterwards."""
        adopt_orphans()
        # A session of its own: the terminal's Ctrl-C is for this process, which then ends the service in order.
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)
        assert process.stdin is not None
        ending_since = 0.0
        while process.poll() is None:
            if self._signal is not None and not process.stdin.closed:
                ending_since = time.monotonic()
                print(f"ending ({self._signal.name})", flush=True)
                process.stdin.close()
            if ending_since and time.monotonic() > ending_since + _CLOSE_TIMEOUT_S:
                process.kill()
            time.sleep(_POLL_S)
        killed = end_descendants(_ORPHAN_GRACE_S, Segments())
        if process.returncode < 0 or killed:
            # The service process did not get as far as this itself.
            from cluster.cli.sweep import sweep_shared_memory

            sweep_shared_memory()
            print(f"the service process ended abnormally ({process.returncode})", file=sys.stderr)
            return 1
        if ending_since:
            print(f"Triptych has ended ({time.monotonic() - ending_since:.0f} s)", flush=True)
        return process.returncode

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; those after it change nothing, since the end is under way."""
        self._signal = self._signal or signal.Signals(number)


class _PortInUse(Exception):
    """Another process listens on the port."""


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise _PortInUse(f"port {port} cannot be used: {error.strerror}; choose another with --port") from error


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 65536:
        raise argparse.ArgumentTypeError(f"{port} is not a TCP port: 1 to 65535")
    return port
