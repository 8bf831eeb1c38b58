"""Checkpoints for the encoder's tests."""

from pathlib import Path

import pytest
from make_random_checkpoint import make_checkpoint


@pytest.fixture(scope="session")
def tiny_qwen2_5_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole random checkpoint as the tool writes it, with at most 256 tokens per image."""
    out_dir = tmp_path_factory.mktemp("checkpoints") / "tiny-qwen2_5_vl"
    make_checkpoint(out_dir)
    return out_dir
