"""Too little memory: told before service begins, a smaller pass behind a failed one, and a typed error at last."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from make_random_checkpoint import make_checkpoint

from configs import EncoderConfig, TriptychConfig
from encoder_workers import Encoder, load_encoder
from encoder_workers.memory import check_memory
from encoder_workers.worker import EncoderWorker

ROOT = Path(__file__).parents[3]
EXABYTE = 2**60


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tower whose activations, rather than its inputs, take the memory."""
    folder = tmp_path_factory.mktemp("checkpoints") / "wide"
    make_checkpoint(folder, family="qwen2_5_vl_half_second", seed=3)
    return folder


def run_limited(checkpoint: Path, mebibytes: int, groups: Sequence[str]) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.integration.encoder_workers.memory_limited"]
    done = subprocess.run(
        [*command, str(checkpoint), str(mebibytes), *groups], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report: list[dict[str, Any]] = json.loads(done.stdout)
    return report


def test_a_pass_that_finds_no_memory_is_repeated_in_halves(wide_checkpoint: Path) -> None:
    first, second = run_limited(wide_checkpoint, 150, ["448x8", "448x2"])
    assert first["outcomes"] == ["right"] * 8
    assert first["passes"], first
    assert max(first["passes"]) <= 4
    assert second == {"outcomes": ["right"] * 2, "passes": [2]}


def test_an_item_without_memory_of_its_own_is_a_typed_error(wide_checkpoint: Path) -> None:
    (report,) = run_limited(wide_checkpoint, 16, ["1344x2"])
    assert report == {"outcomes": ["out_of_memory"] * 2, "passes": []}


def settings(*, max_batch_tokens: int = 1024, cache_bytes: int = 2**20) -> EncoderConfig:
    return EncoderConfig.model_validate({"max_batch_tokens": max_batch_tokens, "cache_bytes": cache_bytes})


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> Encoder:
    return load_encoder(checkpoint, dtype="float32")


def test_what_cannot_fit_is_told_with_what_to_lower(encoder: Encoder) -> None:
    check_memory(encoder, settings())
    with pytest.raises(ValueError, match=r"a pass of 1024 patches \(encoder.max_batch_tokens\).*cache_bytes"):
        check_memory(encoder, settings(cache_bytes=EXABYTE))
    with pytest.raises(ValueError, match="lower these, or give the replica more memory"):
        check_memory(encoder, settings(max_batch_tokens=EXABYTE))


def test_a_replica_that_cannot_fit_does_not_start(checkpoint: Path) -> None:
    config = TriptychConfig.model_validate(
        {"model": str(checkpoint), "dtype": "float32", "encoder": {"cache_bytes": EXABYTE}, "decode": {}}
    )
    with pytest.raises(ValueError, match=r"encoder\.cache_bytes"):
        EncoderWorker(config, "127.0.0.1")
