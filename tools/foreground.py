"""Run a command in the foreground so that whatever ends its parent, usually make, ends it too.

Usage: python3.11 tools/foreground.py COMMAND [ARGUMENT ...]

GNU make passes SIGTERM on to the command it runs, but not SIGINT: it takes it that the terminal has sent that to the
whole process group, and waits. A SIGINT sent to make alone (by a supervisor, a script, a test) would then hang, and a
killed make would leave the command behind. This process stands between: it passes SIGTERM on, and watches its parent
for the rest.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

POLL_S = 0.2
# Time in which a SIGINT that the terminal sent to the group reaches us as well as make.
GROUP_SIGNAL_S = 0.5
GRACE_S = 60.0


class Foreground:
    """One command, its parent watched; made in the main thread, since it takes over SIGINT and SIGTERM."""

    def __init__(self, command: list[str]) -> None:
        self._parent = os.getppid()
        self._parent_caught_sigint = catches_sigint(self._parent)
        self._num_sigint = 0
        signal.signal(signal.SIGTERM, self._on_terminate)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell's background job keeps ignoring it
            signal.signal(signal.SIGINT, self._on_interrupt)
        self._process = subprocess.Popen(command)

    def _on_terminate(self, signum: int, frame: FrameType | None) -> None:
        self._process.send_signal(signal.SIGTERM)

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        # From the terminal: the command has had it too.
        self._num_sigint += 1

    def wait(self) -> int:
        """Wait for the command, as long as it takes; returns its exit status, 128 + n for signal n."""
        while self._process.poll() is None:
            if os.getppid() != self._parent:
                self._end(signal.SIGTERM)
            elif self._interrupted_alone():
                self._end(signal.SIGINT)
            time.sleep(POLL_S)
        status = self._process.returncode
        return status if status >= 0 else 128 - status

    def _interrupted_alone(self) -> bool:
        """Whether the parent has been sent a SIGINT that the group has not."""
        if not self._parent_caught_sigint or self._num_sigint or catches_sigint(self._parent):
            return False
        time.sleep(GROUP_SIGNAL_S)
        return self._num_sigint == 0

    def _end(self, signum: signal.Signals) -> None:
        """Ask the command to end, and after the grace period make it."""
        self._process.send_signal(signum)
        try:
            self._process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()


def catches_sigint(pid: int) -> bool:
    """Whether process `pid` has a handler for SIGINT: make gives its own up on the first one. False where unknown."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return caught is not None and bool(int(caught.group(1), 16) >> (signal.SIGINT - 1) & 1)


if __name__ == "__main__":
    sys.exit(Foreground(sys.argv[1:]).wait())
