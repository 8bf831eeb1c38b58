"""Say whether a virtual environment is the one this repository describes, and let one process at a time change it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

STAMP_NAME = "triptych-stamp.json"
LOCK_FILE = "requirements/cpu.lock"
PROJECT_FILES = (
    "pyproject.toml",
    "tools/environment_stamp.py",
    "tools/install_environment.py",
    "tools/pip_shards.py",
    "tools/torchvision_shim/*",
)


@dataclass(frozen=True)
class Stamp:
    """What an environment was made from.

    Attributes:
        locked: hash of the lock file, the interpreter and the environment's place; empty while it is being made.
        project: hash of the project's own settings and of the set-up tools; empty until they were installed.
    """

    locked: str
    project: str


UNFINISHED = Stamp(locked="", project="")


def wanted_stamp(root: Path, venv: Path) -> Stamp:
    """The stamp of an environment at `venv` made from the files of `root` by this interpreter."""
    # Scripts in an environment name its absolute path, so one that was moved has to be made again.
    place = [sys.version, str(venv.resolve())]
    project_files = sorted(path for pattern in PROJECT_FILES for path in root.glob(pattern) if path.is_file())
    return Stamp(locked=_digest([root / LOCK_FILE], place), project=_digest(project_files, [str(root.resolve())]))


def _digest(files: Sequence[Path], texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for part in [*(text.encode() for text in texts), *(part for file in files for part in _name_and_bytes(file))]:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def _name_and_bytes(file: Path) -> tuple[bytes, bytes]:
    return file.name.encode(), file.read_bytes()


def read_stamp(venv: Path) -> Stamp | None:
    """The stamp of `venv`; None where there is none, UNFINISHED where it cannot be read."""
    try:
        fields = json.loads((venv / STAMP_NAME).read_text(encoding="utf-8"))
        return Stamp(locked=str(fields["locked"]), project=str(fields["project"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return UNFINISHED


def write_stamp(venv: Path, stamp: Stamp) -> None:
    """Put `stamp` in place in one step: a reader sees the old one or the new one."""
    fresh = venv / f"{STAMP_NAME}.new"
    fresh.write_text(json.dumps(asdict(stamp)), encoding="utf-8")
    fresh.replace(venv / STAMP_NAME)


@contextmanager
def exclusive(lock_path: Path, deadline_s: float, waiting: Callable[[], None]) -> Iterator[int]:
    """Hold the file lock at `lock_path`; yields its descriptor.

    The lock belongs to the open file: a child that inherits the descriptor keeps it held after this process was killed.

    Args:
        lock_path: file to lock, made where absent.
        deadline_s: how long to wait for another holder.
        waiting: called once, when another process holds it.

    Raises:
        TimeoutError: it was not free in time.
    """
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + deadline_s
    told = False
    with lock_path.open("w", encoding="utf-8") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another set-up still holds {lock_path} after {deadline_s:.0f} s") from None
            if not told:
                waiting()
                told = True
            time.sleep(0.2)
        yield lock.fileno()
