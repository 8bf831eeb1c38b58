"""An engine's memory under load: what it takes for one load it has taken for good, and the next load needs no more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from make_random_checkpoint import make_checkpoint

_NUM_WARM_UPS = 8
_NUM_LOADS = 6
_NUM_REQUESTS = 200
_MAX_GROWTH_BYTES = 4 * 2**20
"""Of all loads after the warm-ups: 0.3 MiB where kernels are kept within bounds, 100 MiB where every one is."""


@pytest.mark.timeout(300)
def test_an_engine_stays_as_large_as_it_is(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model"
    make_checkpoint(checkpoint)
    command = [sys.executable, "-m", "tests.integration.llm_workers.loaded_engine", str(checkpoint)]
    command += [str(_NUM_WARM_UPS + _NUM_LOADS), str(_NUM_REQUESTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]  # vLLM prints as well
    sizes: list[int] = json.loads(line)["sizes"]
    grown = sizes[-1] - sizes[_NUM_WARM_UPS - 1]
    assert grown < _MAX_GROWTH_BYTES, f"sizes in MiB: {[size >> 20 for size in sizes]}"
