"""What `make serve` starts ends with make, however make is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

FOREGROUND = Path(__file__).resolve().parents[2] / "tools" / "foreground.py"
# Writes each signal that it gets, and ends on the first as a service would, after a moment of work.
SERVICE = """
import os, signal, sys, time
def stop(signum, frame):
    with open("signals", "a") as file:
        file.write(signal.Signals(signum).name + chr(10))
    stop.asked = True
stop.asked = False
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
with open("pid.new", "w") as file:
    file.write(str(os.getpid()))
os.rename("pid.new", "pid")
deadline = time.monotonic() + 60
while not stop.asked and time.monotonic() < deadline:
    time.sleep(0.05)
time.sleep(0.8)
"""


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    """Whether `condition` holds within the time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def runs(pid: int) -> bool:
    """Whether a process exists and has not ended: one that nobody has waited for yet is a zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.fixture
def make(tmp_path: Path) -> subprocess.Popen[bytes]:
    """A make in a session of its own, in a path with a space, whose recipe is the service; it has started."""
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "service.py").write_text(SERVICE)
    recipe = f'@exec "{sys.executable}" "{FOREGROUND}" "{sys.executable}" service.py'
    (folder / "Makefile").write_text(f"serve:\n\t{recipe}\n")
    process = subprocess.Popen(
        ["make", "serve"],
        cwd=folder,
        start_new_session=True,
        # A shell's background job ignores SIGINT, and so would everything below it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert until((folder / "pid").exists)
    return process


def signals(tmp_path: Path) -> list[str]:
    return (tmp_path / "a b" / "signals").read_text().split()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_to_make_alone(make: subprocess.Popen[bytes], name: str, tmp_path: Path) -> None:
    """A supervisor knows only make's process id; the service gets the same signal, once, and make waits for its end."""
    service = int((tmp_path / "a b" / "pid").read_text())
    make.send_signal(signal.Signals[name])
    make.wait(30)
    assert until(lambda: not runs(service))
    assert signals(tmp_path) == [name]


def test_interrupt_from_the_terminal(make: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """Ctrl-C reaches the whole group: the service must not get a second one, which many take for "at once"."""
    service = int((tmp_path / "a b" / "pid").read_text())
    os.killpg(make.pid, signal.SIGINT)
    make.wait(30)
    assert until(lambda: not runs(service))
    assert signals(tmp_path) == ["SIGINT"]


def test_killed_make(make: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """A make that was killed outright leaves no service behind."""
    service = int((tmp_path / "a b" / "pid").read_text())
    make.kill()
    make.wait(30)
    assert until(lambda: not runs(service))
    assert signals(tmp_path) == ["SIGTERM"]


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_exit_status(code: str, status: int) -> None:
    """Make fails where the command failed."""
    done = subprocess.run([sys.executable, str(FOREGROUND), sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == status
