"""Guards: memory freed while a request or a step needs it, memory never freed, and another process's files removed."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llm_workers.embedding_segment import Segment
from llm_workers.embedding_store import STEPS_IN_FLIGHT, EmbeddingStore, sweep_dead_owners
from transfer import Closed, tensor_to_buffer

SHARED_MEMORY = Path("/dev/shm")
TENSOR = torch.randn(16, 8)
CPU = torch.device("cpu")


@pytest.fixture
def store() -> Iterator[EmbeddingStore]:
    made = EmbeddingStore(2 * TENSOR.nbytes)
    yield made
    made.close()
    assert list(SHARED_MEMORY.glob(f"{made.name}*")) == []


def filled(store: EmbeddingStore, tensor: torch.Tensor = TENSOR) -> Segment:
    segment = store.new_segment()
    segment.allocate(tensor.nbytes)[:] = tensor_to_buffer(tensor)
    return segment


def put(store: EmbeddingStore, key: str, *pins: str) -> None:
    store.put(key, filled(store), (16, 8), "float32", TENSOR.nbytes, pins)


def steps(store: EmbeddingStore, number: int) -> None:
    for _ in range(number):
        store.list_for_step([])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_workers_read_what_was_written(store: EmbeddingStore, dtype: str) -> None:
    tensor = torch.randn(5, 3).to(getattr(torch, dtype))
    store.put("key", filled(store, tensor), (5, 3), dtype, tensor.nbytes)
    (stored,) = store.list_for_step(["key"])
    loaded = stored.load(CPU)
    assert loaded.dtype == tensor.dtype
    assert torch.equal(loaded, tensor)


def test_what_a_worker_writes_stays_its_own(store: EmbeddingStore) -> None:
    put(store, "key")
    (stored,) = store.list_for_step(["key"])
    stored.load(CPU).zero_()
    assert torch.equal(stored.load(CPU), TENSOR)


def test_what_a_worker_loaded_outlives_the_entry(store: EmbeddingStore) -> None:
    put(store, "key")
    (stored,) = store.list_for_step(["key"])
    loaded = stored.load(CPU)
    store.close()
    assert torch.equal(loaded, TENSOR)
    with pytest.raises(FileNotFoundError):
        stored.load(CPU)


def test_the_least_recently_used_goes_first(store: EmbeddingStore) -> None:
    put(store, "a")
    put(store, "b")
    store.pin("a", "r")
    store.unpin("a", "r")
    steps(store, STEPS_IN_FLIGHT + 1)
    put(store, "c")
    assert [key for key in "abc" if key in store] == ["a", "c"]
    assert store.held_bytes == 2 * TENSOR.nbytes


def test_pinned_entries_stay_over_the_budget_until_the_last_pin_goes(store: EmbeddingStore) -> None:
    for key in "abcd":
        put(store, key, "r0", "r1")
    steps(store, STEPS_IN_FLIGHT + 1)
    assert store.held_bytes == 4 * TENSOR.nbytes
    for key in "abcd":
        store.unpin(key, "r0")
        store.unpin(key, "r0")
    assert store.held_bytes == 4 * TENSOR.nbytes
    for key in "abcd":
        store.unpin(key, "r1")
    assert [key for key in "abcd" if key in store] == ["c", "d"]
    store.unpin("a", "r1")


def test_entries_that_a_step_in_flight_may_read_stay(store: EmbeddingStore) -> None:
    put(store, "a")
    (stored,) = store.list_for_step(["a"])
    steps(store, STEPS_IN_FLIGHT)
    put(store, "b", "r")
    put(store, "c", "r")
    assert torch.equal(stored.load(CPU), TENSOR)
    steps(store, 1)
    put(store, "d", "r")
    assert "a" not in store


def test_the_second_of_two_equal_embeddings_leaves_nothing(store: EmbeddingStore) -> None:
    put(store, "a", "r0")
    put(store, "a", "r1")
    assert store.held_bytes == TENSOR.nbytes
    assert len(list(SHARED_MEMORY.glob(f"{store.name}.*"))) == 1
    store.unpin("a", "r0")
    steps(store, STEPS_IN_FLIGHT + 1)
    put(store, "b", "r")
    put(store, "c", "r")
    assert "a" in store


def test_a_discarded_segment_takes_no_memory_any_more(store: EmbeddingStore) -> None:
    segment = filled(store)
    segment.discard()
    segment.discard()
    with pytest.raises(Closed):
        segment.allocate(64)
    assert list(SHARED_MEMORY.glob(f"{store.name}.*")) == []


def test_a_segment_larger_than_the_file_system_is_refused_and_leaves_nothing(store: EmbeddingStore) -> None:
    with pytest.raises(OSError):
        store.new_segment().allocate(1 << 60)
    assert list(SHARED_MEMORY.glob(f"{store.name}.*")) == []


def test_only_files_of_dead_owners_are_swept(store: EmbeddingStore) -> None:
    put(store, "key")
    script = (
        "import os, sys; from llm_workers.embedding_store import EmbeddingStore; made = EmbeddingStore(1 << 20);"
        "[made.new_segment().allocate(4096) for _ in range(3)];"
        "sys.stdout.write(made.name); sys.stdout.flush(); os._exit(1)"
    )
    command = [sys.executable, "-c", script]
    name = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
    assert len(list(SHARED_MEMORY.glob(f"{name}.*"))) == 3
    # What a sweep leaves that was interrupted after it had removed the owner's file.
    orphan = SHARED_MEMORY / "triptych-store-1-0123456789abcdef.7"
    orphan.write_bytes(b"x")
    sweep_dead_owners()
    assert list(SHARED_MEMORY.glob(f"{name}*")) == []
    assert not orphan.exists()
    assert len(list(SHARED_MEMORY.glob(f"{store.name}*"))) == 2
