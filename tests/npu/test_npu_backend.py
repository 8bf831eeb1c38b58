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
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.npu.stand_in import stand_in_environment

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_the_ascend_backend(
    pytestconfig: pytest.Config, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Each case's outcome is noted: the support matrix is made of them."""
    if importlib.util.find_spec("torch_npu") is not None:
        environment = dict(os.environ)
    else:
        assert pytestconfig.cache is not None
        environment = stand_in_environment(pytestconfig.cache.mkdir("torch_npu_stand_in"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/npu/npu_cases.py"]
    command += [f"--junitxml={tmp_path / 'cases.xml'}"]
    child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    for case in ElementTree.parse(tmp_path / "cases.xml").iter("testcase"):
        record_property(f"case {case.get('name')}", "passed" if len(case) == 0 else case[0].tag)
    assert child.returncode == 0, child.stdout[-6000:] + child.stderr[-2000:]
    passed = re.search(r"(\d+) passed", child.stdout)
    assert passed is not None and int(passed[1]) >= 45, child.stdout[-2000:]
    assert "skipped" not in child.stdout
