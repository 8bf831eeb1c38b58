"""Runs the Ascend backend's tests in a child process where the real torch_npu can be imported.

Where torch_npu is installed that is this environment. Elsewhere it is a stand-in: the real package, its CANN libraries
replaced by empty ones, and CPU kernels for its operators. That shows that calls are accepted and right; it shows
nothing of speed, nor of a device's numerics.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.npu.stand_in import stand_in_environment

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_the_ascend_backend(pytestconfig: pytest.Config) -> None:
    if importlib.util.find_spec("torch_npu") is not None:
        environment = dict(os.environ)
    else:
        assert pytestconfig.cache is not None
        environment = stand_in_environment(pytestconfig.cache.mkdir("torch_npu_stand_in"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/npu/npu_cases.py"]
    child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert child.returncode == 0, child.stdout[-6000:] + child.stderr[-2000:]
    passed = re.search(r"(\d+) passed", child.stdout)
    assert passed is not None and int(passed[1]) >= 25, child.stdout[-2000:]
    assert "skipped" not in child.stdout
