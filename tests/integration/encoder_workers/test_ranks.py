"""Encoders over real rank processes: the same embeddings, typed failures, no deadlock and no process left behind."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from make_random_checkpoint import make_checkpoint
from safetensors.torch import load_file, save_file

from encoder_workers import CheckpointError, Embedding, Encoder, Media, load_encoder
from encoder_workers.ranks import GroupTower
from tests.unit.encoder_workers.encoder_fixtures import image_file, noise_image, write_small_internvl
from transfer import EncodeFailed, EncoderLost

WAIT_S = 60.0
FAMILIES = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "internvl-opengvlab", "internvl-hf", "qwen2_audio")


def group_of(encoder: Encoder) -> GroupTower:
    tower = encoder._tower
    assert isinstance(tower, GroupTower)
    return tower


def is_running(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def write_checkpoint(folder: Path, family: str) -> Path:
    if family.startswith("internvl"):
        return write_small_internvl(folder / family, family.partition("-")[2], seed=3)
    make_checkpoint(folder / family, family=family, seed=3)
    return folder / family


def batches(encoder: Encoder) -> list[list[Media]]:
    """One large item, and one among several small ones."""
    if encoder.modalities == ("audio",):
        media = []
        for seconds in (9.97, 0.4, 2.0, 0.1):
            out = io.BytesIO()
            noise = np.random.default_rng(int(seconds * 100)).standard_normal(int(16000 * seconds)) * 0.1
            soundfile.write(out, noise.astype(np.float32), 16000, format="WAV", subtype="FLOAT")
            media.append(Media("audio", out.getvalue()))
    else:
        sizes = ((301, 449), (64, 64), (130, 70), (30, 150))
        media = [Media("image", image_file(noise_image(*size, seed=i), "PNG")) for i, size in enumerate(sizes)]
    return [media[:1], media[1:2], media]


def tensors(encoder: Encoder, media: list[Media]) -> list[torch.Tensor]:
    results = encoder.encode(media)
    assert all(isinstance(result, Embedding) for result in results)
    return [result.tensor for result in results if isinstance(result, Embedding)]


@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_equal_one(family: str, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path, family)
    one, two = load_encoder(model, dtype="float32"), load_encoder(model, dtype="float32", ranks=2)
    try:
        assert (two.width, two.layout, two.revision) == (one.width, one.layout, one.revision)
        for media in batches(one):
            for got, expected in zip(tensors(two, media), tensors(one, media), strict=True):
                assert (got - expected).abs().max() < 1e-5 * max(1.0, expected.abs().max().item())
        processes = group_of(two).process_ids
        assert len(processes) == 2 and all(is_running(process) for process in processes)
    finally:
        two.close()
        two.close()
    assert not any(is_running(process) for process in processes)
    with pytest.raises(ValueError, match="closed"):
        two.encode(batches(one)[0])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), "qwen2_5_vl")


@pytest.fixture(scope="module")
def encoder(model: Path) -> Iterator[Encoder]:
    encoder = load_encoder(model, dtype="float32", ranks=2)
    yield encoder
    encoder.close()


def test_a_lost_rank_is_an_error_and_the_group_starts_again(encoder: Encoder) -> None:
    """Killed between two passes, so that the other rank is in an exchange with nobody."""
    media = batches(encoder)[0]
    expected = tensors(encoder, media)
    first, second = group_of(encoder).process_ids
    os.kill(second, signal.SIGKILL)
    wait_until(lambda: not is_running(second))
    with pytest.raises(EncoderLost, match="rank"):
        encoder.encode(media)
    assert not is_running(first), "one rank's end is the group's"
    encoder.check_health()
    for got, wanted in zip(tensors(encoder, media), expected, strict=True):
        assert torch.equal(got, wanted)


def test_a_rank_that_hangs_is_an_error(encoder: Encoder) -> None:
    """Stopped, it neither answers nor ends; the pass has a time limit, and not even the stopped rank stays."""
    media = batches(encoder)[0]
    tensors(encoder, media)
    group = group_of(encoder)
    processes = group.process_ids
    os.kill(processes[0], signal.SIGSTOP)
    group._group._timeout_s = 0.5
    with pytest.raises(EncoderLost, match="did not answer within"):
        encoder.encode(media)
    assert not any(is_running(process) for process in processes)


def test_what_fails_in_a_rank_is_told(encoder: Encoder, model: Path, tmp_path: Path) -> None:
    """A pass that breaks a rank fails typed; weights that do not fit are named at the start."""
    media = batches(encoder)[0]
    good = encoder.preprocess(encoder.decode(media[0]))
    bad = type(good)(good.inputs[:, :-1], good.grid, good.metadata)
    with pytest.raises(EncodeFailed, match=r"rank \d of the encoder failed: RuntimeError"):
        encoder.forward([bad])
    weights = load_file(model / "model.safetensors")
    del weights["visual.blocks.1.norm1.weight"]
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (broken / name).write_bytes((model / name).read_bytes())
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing visual\.blocks\.1\.norm1\.weight"):
        load_encoder(broken, dtype="float32", ranks=2)
    with pytest.raises(ValueError, match="no cuda device"):
        load_encoder(model, device="cuda", dtype="float32", ranks=2)


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
from encoder_workers import load_encoder
encoder = load_encoder(sys.argv[1], dtype="float32", ranks=2)
print(*encoder._tower.process_ids, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_ranks_end_when_their_encoder_is_killed(model: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(model), str(root)], stdout=subprocess.PIPE, timeout=240, check=False
    )
    assert done.returncode == -signal.SIGKILL
    processes = [int(word) for word in done.stdout.split()]
    assert len(processes) == 2
    wait_until(lambda: not any(is_running(process) for process in processes))


def test_a_rank_killed_in_the_middle_of_a_pass_does_not_hang_it(encoder: Encoder) -> None:
    """Wherever in the pass it falls: every pass ends, in embeddings or in the typed error."""
    media = [Media("image", image_file(noise_image(900, 900, seed=i), "PNG")) for i in range(8)]
    tensors(encoder, media)
    victim = group_of(encoder).process_ids[1]
    killer = threading.Timer(0.05, os.kill, (victim, signal.SIGKILL))
    killer.start()
    with pytest.raises(EncoderLost):
        for _ in range(200):
            tensors(encoder, media)
    killer.join()
