"""Guards: two embeddings in one block, memory that never becomes free again, an arena left behind by a dead process."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transfer.channels.arena import HEADER_BYTES, PREFIX, Arena, Block, block_header, sweep_dead_arenas
from transfer.owned_files import SHARED_MEMORY

PAGE = 4096
NUM_BYTES = 16 * PAGE


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(NUM_BYTES)
    yield made
    made.close()
    assert not (SHARED_MEMORY / made.name).exists()


def stored(arena: Arena, content: bytes) -> Block | None:
    block = arena.allocate(len(content))
    if block is not None:
        block.memory[:] = content
    return block


@settings(max_examples=60, deadline=None)
@example([5 * PAGE - HEADER_BYTES, 6 * PAGE - HEADER_BYTES, -1, -1, 6 * PAGE])
@given(st.lists(st.one_of(st.integers(1, 6 * PAGE), st.integers(-8, -1)), max_size=60))
def test_blocks_never_overlap_and_all_come_back(steps: list[int]) -> None:
    arena = Arena(NUM_BYTES)
    try:
        live: list[tuple[Block, bytes]] = []
        for step in steps:
            if step < 0:
                if live:
                    live.pop(step % len(live))
            else:
                content = os.urandom(step)
                block = stored(arena, content)
                if block is not None:
                    live.append((block, content))
                    assert block.offset % PAGE == HEADER_BYTES
                else:
                    assert arena.num_free_bytes < NUM_BYTES
            block = None  # of the blocks, only those that are live are referred to when the next one is asked for
            assert all(bytes(block.memory) == content for block, content in live)
        live.clear()
        assert arena.num_free_bytes == NUM_BYTES
        assert arena.allocate(NUM_BYTES - HEADER_BYTES) is not None
    finally:
        arena.close()


def test_the_header_goes_with_the_last_reference(arena: Arena) -> None:
    block = stored(arena, b"payload")
    assert block is not None
    offset, header = block.offset, block_header(block.block_id)
    file = (SHARED_MEMORY / arena.name).read_bytes()
    assert file[offset - HEADER_BYTES : offset] == header
    assert file[offset : offset + 7] == b"payload"
    tensor = torch.frombuffer(block.memory[2:4], dtype=torch.uint8)
    del block
    assert arena.num_free_bytes == NUM_BYTES - PAGE
    del tensor
    assert arena.num_free_bytes == NUM_BYTES
    assert (SHARED_MEMORY / arena.name).read_bytes()[offset - HEADER_BYTES : offset] == bytes(HEADER_BYTES)


def test_a_block_is_known_by_its_memory_alone(arena: Arena) -> None:
    blocks = [stored(arena, bytes(3 * PAGE)) for _ in range(3)]
    for block in blocks:
        assert block is not None
        view = torch.frombuffer(block.memory, dtype=torch.float32).view(-1, 8)
        assert arena.find(view.view(-1).view(torch.uint8).numpy().data) == (block.offset, block.block_id)
        assert arena.find(block.memory[8:]) is None
    assert arena.find(memoryview(bytearray(9))) is None


def test_a_full_arena_says_so(arena: Arena) -> None:
    kept = [arena.allocate(4 * PAGE - HEADER_BYTES) for _ in range(4)]
    assert None not in kept
    assert arena.allocate(1) is None
    kept.pop(1)
    assert arena.allocate(1) is not None


def test_memory_outlives_close(arena: Arena) -> None:
    block = stored(arena, b"payload")
    assert block is not None
    arena.close()
    arena.close()
    assert bytes(block.memory) == b"payload"
    assert arena.allocate(1) is None


def test_an_arena_larger_than_the_file_system_is_refused_and_leaves_nothing() -> None:
    before = set(SHARED_MEMORY.glob(f"{PREFIX}*"))
    with pytest.raises(OSError):
        Arena(1 << 60)
    assert not set(SHARED_MEMORY.glob(f"{PREFIX}{os.getpid()}-*")) - before


def test_a_process_that_ends_with_blocks_in_use_ends_in_silence() -> None:
    script = (
        "import sys, torch; from transfer import EmbeddingServer, send_channels;"
        "server = EmbeddingServer('', channels=send_channels(['shm'], 2**20));"
        "kept = [server.place(torch.zeros(16, 1024)) for _ in range(3)]; server.close(); sys.stdout.write('ended')"
    )
    # The dynamic linker has its own words where a library that is to be preloaded lies in a folder with a space.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert (ended.stdout, ended.stderr) == ("ended", "")


def test_only_arenas_of_dead_owners_are_swept(arena: Arena) -> None:
    script = (
        "import os, sys; from transfer.channels.arena import Arena; made = Arena(65536);"
        "sys.stdout.write(made.name); sys.stdout.flush(); os._exit(1)"
    )
    command = [sys.executable, "-c", script]
    name = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
    assert name.startswith(PREFIX)
    sweep_dead_arenas()
    assert not (SHARED_MEMORY / name).exists()
    assert (SHARED_MEMORY / arena.name).exists()
