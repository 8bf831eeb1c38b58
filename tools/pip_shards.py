"""Install an exact list of packages with several pip processes at once, telling how far they are."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

DEADLINE_S = 3600.0
PROGRESS_PERIOD_S = 10.0
PIP_OPTIONS = ("--no-input", "--disable-pip-version-check", "--no-deps", "--progress-bar", "off")


class PipError(Exception):
    """A pip process failed or ran out of time; the message ends with the last lines it wrote."""


class _PipProcess:
    """One `pip install`, its output counted as it comes and kept in a log file."""

    def __init__(self, python: Path, arguments: Sequence[str], log: Path, keep_open: Sequence[int]) -> None:
        self.num_collected = 0
        self._log = log
        command = [str(python), "-m", "pip", "install", *PIP_OPTIONS, *arguments]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=keep_open,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._log.open("w", encoding="utf-8") as log:
            for line in self._process.stdout:
                log.write(line)
                log.flush()
                # One such line per requirement, whether it comes from an index, a folder or the cache.
                self.num_collected += line.startswith(("Collecting ", "Processing ", "Requirement already satisfied"))

    def running(self) -> bool:
        return self._process.poll() is None

    def check(self) -> None:
        """Raise PipError unless pip ended well."""
        self._reader.join(timeout=10)
        if self._process.returncode != 0:
            tail = self._log.read_text(encoding="utf-8").splitlines()[-15:]
            raise PipError("\n".join([f"pip failed (its output is in {self._log}); its last lines:", *tail]))

    def stop(self) -> None:
        """End pip if it still runs; safe to call at any time."""
        if self.running():
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()


def pip_install(
    python: Path,
    shards: Sequence[Sequence[str]],
    log_dir: Path,
    report: Callable[[int], None],
    keep_open: Sequence[int] = (),
) -> None:
    """Run one `pip install --no-deps` per shard at the same time, into the environment of `python`.

    Args:
        python: interpreter of the virtual environment.
        shards: the arguments of each pip process; no package may be in two of them.
        log_dir: existing folder for the output, one file per shard.
        report: called every few seconds with the number of packages looked up so far, over all shards.
        keep_open: file descriptors the processes inherit, so that a lock held on one lasts as long as they do.

    Raises:
        PipError: a process failed; the others are ended first.
    """
    deadline = time.monotonic() + DEADLINE_S
    processes: list[_PipProcess] = []
    try:
        for index, arguments in enumerate(shards):
            processes.append(_PipProcess(python, arguments, log_dir / f"pip-{index}.log", keep_open))
        next_report = time.monotonic() + PROGRESS_PERIOD_S
        while any(process.running() for process in processes):
            for process in processes:
                if not process.running():
                    process.check()
            now = time.monotonic()
            if now > deadline:
                raise PipError(f"pip did not finish within {DEADLINE_S:.0f} s; its output is in {log_dir}")
            if now > next_report:
                report(sum(process.num_collected for process in processes))
                next_report = now + PROGRESS_PERIOD_S
            time.sleep(0.1)
        for process in processes:
            process.check()
    finally:
        for process in processes:
            process.stop()
