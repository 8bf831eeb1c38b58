"""Make or refresh the virtual environment of this repository from its lock file, and nothing where it is up to date.

Usage: python3.11 tools/install_environment.py [--venv .venv]

Runs on a bare Python 3.11. A change of the lock file makes the environment anew; a change of the project's settings or
of the set-up tools installs only those again. An environment that was left unfinished is made anew.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from environment_stamp import LOCK_FILE, UNFINISHED, Stamp, exclusive, read_stamp, wanted_stamp, write_stamp
from pip_shards import PipError, pip_install

ROOT = Path(__file__).resolve().parent.parent
SHIM_FILES = ("triptych_torchvision_shim.py", "triptych_torchvision_shim.pth")
# The main index has no CPU build of torch. This is asked only when the configured indexes did not have it.
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
LOCK_DEADLINE_S = 3600.0
STEP_DEADLINE_S = 600.0
NUM_STEPS = 5


class SetUpError(Exception):
    """Set-up cannot go on; the message says what to do."""


def say(text: str) -> None:
    """One line for the person who waits, at once."""
    print(text, flush=True)


def locked_packages(lock_file: Path) -> tuple[str, list[str]]:
    """The requirement of torch, and all the others, of a lock file.

    Raises:
        SetUpError: a line is not `name==version`, or torch is not among them.
    """
    lines = [line.strip() for line in lock_file.read_text(encoding="utf-8").splitlines()]
    packages = [line for line in lines if line and not line.startswith("#")]
    loose = [line for line in packages if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+", line)]
    torch = [line for line in packages if line.startswith("torch==")]
    if loose or len(torch) != 1:
        raise SetUpError(
            f"{lock_file}: every line must be name==version, torch among them; wrong: {loose or 'no torch'}"
        )
    return torch[0], [line for line in packages if line != torch[0]]


def make_empty(venv: Path) -> None:
    """A new virtual environment at `venv`, marked unfinished before anything is in it.

    Raises:
        SetUpError: something else is at `venv`, or this Python cannot make environments.
    """
    if venv.exists():
        if read_stamp(venv) is None:
            raise SetUpError(f"{venv} exists and was not made here: move it away (or `make clean`), then run again")
        shutil.rmtree(venv)
    venv.mkdir(parents=True)
    write_stamp(venv, UNFINISHED)
    made = subprocess.run(
        [sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True, timeout=STEP_DEADLINE_S, check=False
    )
    if made.returncode != 0:
        raise SetUpError(f"{sys.executable} -m venv failed:\n{made.stdout}{made.stderr}")


def install_torch(python: Path, requirement: str, log_dir: Path, lock_fd: int) -> None:
    """Install torch alone, so that no other package is looked for on the index of PyTorch."""
    arguments = ["--no-compile", requirement]
    try:
        pip_install(python, [arguments], log_dir, report=_silent, keep_open=(lock_fd,))
    except PipError:
        say(f"      {requirement} is not on the configured indexes; asking PyTorch's index of CPU builds")
        more = ["--extra-index-url", TORCH_CPU_INDEX, "--retries", "0", *arguments]
        pip_install(python, [more], log_dir, report=_silent, keep_open=(lock_fd,))


def _silent(num_collected: int) -> None:
    """Progress of an installation of one package."""


def install_others(python: Path, packages: list[str], log_dir: Path, lock_fd: int) -> None:
    """Install the rest in as many pip processes as there are cores, four at most: most of the time is unpacking."""
    num_shards = min(4, max(1, os.cpu_count() or 1))

    def report(num_collected: int) -> None:
        state = "unpacking" if num_collected >= len(packages) else f"found {num_collected} of {len(packages)}"
        say(f"      {state}")

    # Compiled together afterwards, on all cores.
    shards = [["--no-compile", "--only-binary", ":all:", *packages[index::num_shards]] for index in range(num_shards)]
    pip_install(python, shards, log_dir, report, keep_open=(lock_fd,))


def install_project(python: Path, log_dir: Path, lock_fd: int) -> None:
    """Install this repository in place, and the import hook for torchvision: its module before the file naming it."""
    arguments = ["--no-build-isolation", "--editable", str(ROOT)]
    pip_install(python, [arguments], log_dir, report=_silent, keep_open=(lock_fd,))
    for name in SHIM_FILES:
        source, target = ROOT / "tools" / "torchvision_shim" / name, site_packages(python) / name
        fresh = target.with_name(f"{name}.new")
        shutil.copyfile(source, fresh)
        fresh.replace(target)


def site_packages(python: Path) -> Path:
    """The folder in which the environment of `python` has its packages."""
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip())


def compile_packages(python: Path) -> None:
    """Write the byte code of all packages.

    Where Python is told to write none at import, as in many containers, every process would compile anew what it
    imports, which doubles the time that an engine takes to start; and Ray's node gives up on agents not up within 15 s.
    """
    command = [str(python), "-m", "compileall", "-q", "-j", "0", "-x", "site-packages/.*/(tests?|rllib)/"]
    # A file that cannot be compiled is a template; nothing imports it.
    subprocess.run([*command, str(site_packages(python))], capture_output=True, timeout=STEP_DEADLINE_S, check=False)


def check_imports(python: Path) -> None:
    """Import what breaks most easily, torchvision beside another build of torch, and what Ray's own processes load.

    Raises:
        SetUpError: they do not import.
    """
    modules = "cluster, ray.serve, ray.dashboard.agent, torchvision.transforms.v2.functional"
    command = [str(python), "-c", f"import {modules}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=STEP_DEADLINE_S, check=False)
    if done.returncode != 0:
        raise SetUpError(f"the new environment does not import {modules}:\n{done.stderr}")


def install(venv: Path, wanted: Stamp, lock_fd: int) -> None:
    """Bring `venv` to `wanted`, from whatever state it is in, reporting each step."""
    started = time.monotonic()
    python = venv / "bin" / "python"
    log_dir = ROOT / ".cache" / "set-up"
    log_dir.mkdir(parents=True, exist_ok=True)
    found = read_stamp(venv)
    if found is None or found.locked != wanted.locked:
        torch, others = locked_packages(ROOT / LOCK_FILE)
        say(f"[1/{NUM_STEPS}] new virtual environment in {venv}")
        make_empty(venv)
        say(f"[2/{NUM_STEPS}] {torch}")
        install_torch(python, torch, log_dir, lock_fd)
        say(f"[3/{NUM_STEPS}] {len(others)} packages of {LOCK_FILE}")
        install_others(python, others, log_dir, lock_fd)
        say("      compiling")
        compile_packages(python)
        write_stamp(venv, Stamp(locked=wanted.locked, project=""))
    say(f"[4/{NUM_STEPS}] triptych itself")
    install_project(python, log_dir, lock_fd)
    say(f"[5/{NUM_STEPS}] checking imports")
    check_imports(python)
    write_stamp(venv, wanted)
    say(f"environment ready after {time.monotonic() - started:.0f} s")


def main(arguments: list[str]) -> int:
    """Parse the command line and install; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make or refresh the virtual environment from the lock file.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="its folder (default: .venv)")
    venv: Path = parser.parse_args(arguments).venv
    if sys.version_info[:2] != (3, 11):
        say(f"Python 3.11 is needed, this is {sys.version.split()[0]}: run `make PYTHON=/path/to/python3.11 ...`")
        return 1
    # A terminated set-up ends its pip processes: as an exception it passes through their `finally`.
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    if read_stamp(venv) == wanted_stamp(ROOT, venv):
        return 0
    try:
        lock_path = ROOT / ".cache" / "set-up.lock"
        with exclusive(lock_path, LOCK_DEADLINE_S, lambda: say("another set-up is at work here; waiting")) as lock_fd:
            wanted = wanted_stamp(ROOT, venv)
            if read_stamp(venv) != wanted:
                install(venv, wanted, lock_fd)
    except (SetUpError, PipError, TimeoutError, subprocess.SubprocessError) as error:
        say(f"set-up failed: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
