"""An encoder's memory over a thousand pictures of other sizes: what the first few hundred took is all it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_NUM_WARM_UPS = 400
"""Windows are kept for 256 grids, kernels for 64 shapes; from there on memory grew by 0.1 MiB."""
_NUM_ENCODES = 1000
_MAX_GROWTH_BYTES = 8 * 2**20


def test_a_thousand_encodes_leave_nothing_behind(checkpoint: Path) -> None:
    """In float32 and in bfloat16, one encoder each."""
    command = [sys.executable, "-m", "tests.integration.encoder_workers.many_encodes", str(checkpoint)]
    command += [str(_NUM_WARM_UPS), str(_NUM_ENCODES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    before, after = json.loads(done.stdout.splitlines()[-1])["sizes"]
    assert after - before < _MAX_GROWTH_BYTES, (before >> 20, after >> 20)
