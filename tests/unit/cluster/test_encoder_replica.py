"""What a new encoder replica has to import, which is most of the time that it takes to start."""

from __future__ import annotations

import subprocess
import sys


def test_an_encoder_needs_no_vllm() -> None:
    """It costs every new replica seconds and hundreds of MiB, just when more replicas are wanted."""
    line = "import cluster.encoder_replica, sys; print(sorted({'vllm', 'transformers'} & {*sys.modules}))"
    found = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip() == "[]"
