"""Holds the code base to its structure: import directions, homes of libraries, sizes, exports, catches, no pickle.

Each rule runs over every module of the six packages, and over a sample that breaks it, so that a rule which has stopped
seeing anything is noticed.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from architecture_rules import (
    PACKAGES,
    Elsewhere,
    Module,
    check_broad_catches,
    check_directions,
    check_docstring,
    check_environment,
    check_exports,
    check_length,
    check_libraries,
    check_no_pickle,
    parse,
    read_modules,
)

ROOT = Path(__file__).resolve().parents[2]

_VALUES = ("vllm.outputs", "vllm.sampling_params")
LIBRARIES_ELSEWHERE = (
    Elsewhere("cluster/ingress", ("vllm",), "the HTTP surface is vLLM's own application over our engine client"),
    Elsewhere(
        "cluster/pipeline.py", _VALUES, "carries vLLM's request and output values between its front and its engines"
    ),
    Elsewhere("cluster/request.py", _VALUES, "a request carries vLLM's sampling parameters"),
    Elsewhere("cluster/continuation.py", _VALUES, "decides by vLLM's sampling parameters"),
    Elsewhere("cluster/stages.py", _VALUES, "names the output value that a stage yields"),
    Elsewhere("cluster/ray_stages.py", _VALUES, "names the output value that a stage yields"),
    Elsewhere("cluster/replicas.py", _VALUES, "names the output value that a replica yields"),
    Elsewhere("cluster/trace.py", _VALUES, "names the output value whose moments it notes"),
    Elsewhere("cluster/cli/bench/load.py", ("vllm.benchmarks",), "vLLM's benchmark client is the load generator"),
    Elsewhere(
        "cluster/cli/bench/media_files.py", ("av",), "makes the clips of a load; encoder_workers only reads clips"
    ),
    Elsewhere(
        "cluster/metrics/engine_logger.py", ("vllm.v1.metrics",), "vLLM's metrics over Ray's, which only cluster knows"
    ),
    Elsewhere("encoder_workers/vllm_tower.py", ("vllm",), "vLLM's own tower, for models without a native encoder"),
)
LONG_FILES: dict[str, str] = {}
PROCESS_EDGES: dict[str, str] = {
    "cluster/ingress/fan_out.py": "the edge of a task: the error is carried to the consumer, which raises it",
    "encoder_workers/batcher.py": "the edge of a thread: every failure becomes the outcome of its own item",
    "encoder_workers/images.py": "metadata can be broken in any way a stranger thinks of; the picture is still good",
    "encoder_workers/ranks/process.py": "the edge of a process: its encoder is told why it ends",
    "transfer/client_thread.py": "the edge of a thread: without it no fetch would end, so all are ended",
    "transfer/exchange.py": "what the thread does for one fetch or link: its defect must not end it for the others",
    "transfer/server_thread.py": "the edge of a thread: one peer's defect must not silence it for the others",
}

Rule = Callable[[Module], list[str]]
RULES: dict[str, Rule] = {
    "directions": check_directions,
    "libraries": lambda module: check_libraries(module, LIBRARIES_ELSEWHERE),
    "environment": check_environment,
    "pickle": check_no_pickle,
    "docstring": check_docstring,
    "length": lambda module: check_length(module, LONG_FILES),
    "exports": check_exports,
    "broad catches": lambda module: check_broad_catches(module, PROCESS_EDGES),
}
MODULES = read_modules(ROOT)


@pytest.mark.parametrize("rule", RULES)
def test_every_module_keeps(rule: str) -> None:
    """A change that crosses a boundary of the design is named, with its line."""
    violations = [violation for module in MODULES for violation in RULES[rule](module)]
    assert violations == [], "\n" + "\n".join(violations)


def test_all_packages_are_read() -> None:
    """A renamed folder must not slip out of the rules."""
    assert {module.package for module in MODULES} == set(PACKAGES)
    assert len(MODULES) > 20


BREAKS: list[tuple[str, str, str]] = [
    ("directions", "transfer/codec.py", "from encoder_workers import cache"),
    ("directions", "encoder_workers/worker.py", "def f():\n    import llm_workers.engine"),
    ("directions", "llm_workers/engine.py", "from encoder_workers.cache import Cache"),
    ("directions", "transfer/codec.py", "import npu_kernels"),
    ("directions", "npu_kernels/device.py", "import transfer"),
    ("directions", "configs/loader.py", "import transfer"),
    ("directions", "transfer/channels/shm.py", "from cluster import app"),
    ("directions", "cluster/app.py", "from tests.unit import helpers"),
    ("directions", "transfer/codec.py", "import importlib\nimportlib.import_module('cluster.app')"),
    ("libraries", "llm_workers/engine.py", "import ray"),
    ("libraries", "encoder_workers/worker.py", "from fastapi import FastAPI"),
    ("libraries", "cluster/app.py", "from vllm.outputs import RequestOutput"),
    ("libraries", "cluster/pipeline.py", "from vllm.config import VllmConfig"),
    ("libraries", "npu_kernels/device.py", "import torch_npu"),
    ("libraries", "llm_workers/connector.py", "import zmq.asyncio"),
    ("libraries", "cluster/app.py", "from PIL import Image"),
    ("libraries", "llm_workers/engine.py", "def f():\n    import librosa"),
    ("libraries", "cluster/app.py", "import yaml"),
    ("environment", "llm_workers/engine.py", "import os\nx = os.environ['A']"),
    ("environment", "cluster/app.py", "from os import getenv"),
    ("environment", "transfer/link.py", "import os\nos.putenv('A', 'b')"),
    ("pickle", "transfer/codec.py", "import pickle"),
    ("pickle", "transfer/codec.py", "from multiprocessing.reduction import pickle\nfrom cloudpickle import dumps"),
    ("pickle", "transfer/link.py", "def f(socket):\n    return socket.recv_pyobj()"),
    ("pickle", "transfer/channels/hccl.py", "from torch.distributed import broadcast_object_list"),
    ("pickle", "transfer/tensors.py", "import torch\ntorch.load('f')"),
    ("docstring", "configs/loader.py", "import sys"),
    ("docstring", "configs/loader.py", '"""loader"""'),
    ("length", "configs/loader.py", "x = 1\n" * 301),
    ("exports", "transfer/__init__.py", "from transfer.codec import Codec"),
    ("exports", "transfer/__init__.py", "from .codec import Codec\n__all__ = []"),
    ("exports", "transfer/__init__.py", "def open_all(): ...\n__all__ = ()"),
    ("exports", "transfer/__init__.py", "__all__ = ['Codec']"),
    ("broad catches", "transfer/codec.py", "try:\n    f()\nexcept Exception:\n    pass"),
    ("broad catches", "transfer/codec.py", "try:\n    f()\nexcept (OSError, BaseException) as e:\n    x = e"),
    ("broad catches", "transfer/codec.py", "try:\n    f()\nexcept:\n    pass"),
    ("broad catches", "transfer/codec.py", "import contextlib\nwith contextlib.suppress(Exception):\n    f()"),
]


@pytest.mark.parametrize(("rule", "path", "source"), BREAKS)
def test_rule_sees_what_breaks_it(rule: str, path: str, source: str) -> None:
    """A rule that finds nothing anywhere would pass for ever."""
    found = RULES[rule](parse(path, source))
    assert found != []
    assert all(violation.startswith(f"{path}:") for violation in found)


KEEPS: list[tuple[str, str, str]] = [
    ("directions", "cluster/app.py", "import encoder_workers, llm_workers, transfer, npu_kernels, configs"),
    ("directions", "llm_workers/engine.py", "from transfer import codec\nfrom . import messages"),
    ("directions", "transfer/channels/shm.py", "from .. import codec\nfrom ..channels import base"),
    ("libraries", "cluster/app.py", "from ray import serve\nfrom fastapi import FastAPI"),
    ("libraries", "cluster/pipeline.py", "from vllm.outputs import RequestOutput"),
    ("libraries", "npu_kernels/ascend.py", "import torch_npu"),
    ("environment", "configs/environment.py", "import os\nx = os.environ"),
    ("environment", "transfer/link.py", "import os\nx = os.getpid()"),
    ("pickle", "llm_workers/engine.py", "import pickle"),
    ("docstring", "configs/loader.py", '"""Reads one file."""'),
    ("length", "configs/loader.py", "x = 1\n" * 300),
    ("exports", "transfer/__init__.py", '"""Empty."""'),
    ("exports", "transfer/__init__.py", "import os\nfrom .codec import Codec\n__all__ = ['Codec']"),
    ("exports", "llm_workers/__init__.py", "def __getattr__(name): ...\n__all__ = ['Engine']"),
    ("broad catches", "transfer/codec.py", "try:\n    f()\nexcept ValueError:\n    pass"),
    ("broad catches", "transfer/codec.py", "try:\n    f()\nexcept Exception:\n    close()\n    raise"),
]


@pytest.mark.parametrize(("rule", "path", "source"), KEEPS)
def test_rule_passes_what_keeps_it(rule: str, path: str, source: str) -> None:
    """A rule that refuses good code would be switched off."""
    assert RULES[rule](parse(path, source)) == []


def test_allowances_are_needed() -> None:
    """An allowance whose reason is gone would hide the next violation."""
    by_path = {str(module.path): module for module in MODULES}
    unneeded = [path for path in LONG_FILES if path not in by_path or not check_length(by_path[path], {})]
    unneeded += [path for path in PROCESS_EDGES if path not in by_path or not check_broad_catches(by_path[path], {})]
    for leave in LIBRARIES_ELSEWHERE:
        others = [other for other in LIBRARIES_ELSEWHERE if other is not leave]
        there = [module for module in MODULES if module.path.is_relative_to(leave.place)]
        if there and not any(check_libraries(module, others) for module in there):
            unneeded.append(leave.place)
    assert unneeded == []


# Taken apart, so that this file does not find itself.
MACHINE_PATH = re.compile(r"(?<![\w.$}~/-])/(?:" + "|".join(["work", "root", "opt"]) + r")/\w")
INDEX_ADDRESS = re.compile(r"\b(?:https?|file)://\S*/(?:simple|whl|wheels|pypi)\b")
# Asked for the CPU build of torch, which the main index does not have.
INDEX_ADDRESS_HOME = "tools/install_environment.py"


def machine_addresses(name: str, text: str) -> list[str]:
    """Lines of a file that name a folder of some machine, or a package index, which only one file may."""
    return [
        f"{name}:{number}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), start=1)
        if MACHINE_PATH.search(line) or (INDEX_ADDRESS.search(line) and name != INDEX_ADDRESS_HOME)
    ]


def test_no_file_names_a_machine() -> None:
    """What works on the author's machine alone is found here, in documents and data as in code."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, timeout=30, check=True).stdout
    names = [name for name in listed.decode().split("\0") if name]
    assert "pyproject.toml" in names
    found = []
    for name in names:
        data = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        if b"\0" not in data[:8192]:
            found += machine_addresses(name, data.decode("utf-8", errors="replace"))
    assert found == []


@pytest.mark.parametrize("folder", ["work", "root", "opt"])
def test_machine_paths_are_seen(folder: str) -> None:
    """The search finds such a path in prose, code and assignments, and leaves relative paths and addresses alone."""
    assert machine_addresses("a.md", f"see /{folder}/main/file")
    assert machine_addresses("a.py", f'PATH = "/{folder}/x"')
    assert machine_addresses("a.env", f"HOME=/{folder}/x")
    assert not machine_addresses("a.md", f"in the {folder}/ folder, its/{folder}/x or ./{folder}/x")
    assert machine_addresses("a.md", "https://example.org/" + "simple/torch")
    assert not machine_addresses("a.md", "https://example.org/a-simple-guide")
