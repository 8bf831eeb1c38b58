"""Guards: memory that is reused while a reader in another process holds it, or never again after that reader died."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer import EmbeddingExpired, EncoderLost, ProtocolError, new_transfer_id
from transfer.channels.arena import HEADER_BYTES, Arena, Block
from transfer.channels.arena_reader import ArenaReader
from transfer.channels.board import Listing, find_listing

PAGE = 4096
NUM_BYTES = 4 * PAGE
FULL = NUM_BYTES - HEADER_BYTES
WAIT_S = 60.0


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(NUM_BYTES)
    yield made
    made.close()


@pytest.fixture
def reader() -> Iterator[ArenaReader]:
    made = ArenaReader()
    yield made
    made.close()


def filled(arena: Arena, byte: int, num_bytes: int = FULL) -> Block:
    block = arena.allocate(num_bytes)
    assert block is not None
    block.memory[:] = bytes([byte]) * num_bytes
    return block


def test_a_held_block_stays_as_it_is_until_the_last_hold_goes(arena: Arena, reader: ArenaReader) -> None:
    block = filled(arena, 7)
    first, second, dropped = (reader.hold(arena.name, block.offset, FULL, block.block_id) for _ in range(3))
    del block
    for held in (first, second):
        assert arena.allocate(1) is None
        assert bytes(held.memory) == bytes([7]) * FULL
        assert Path(held.path).read_bytes()[held.offset : held.offset + FULL] == bytes([7]) * FULL
        held.close()
        held.close()
    assert arena.allocate(1) is None
    del dropped
    assert arena.num_free_bytes == 0
    reader.map(arena.name).drop_queued()
    assert arena.num_free_bytes == NUM_BYTES


def test_a_block_that_is_gone_is_expired_and_not_locked(arena: Arena, reader: ArenaReader) -> None:
    block = filled(arena, 1)
    offset, block_id = block.offset, block.block_id
    del block
    with pytest.raises(EmbeddingExpired):
        reader.hold(arena.name, offset, FULL, block_id)
    with pytest.raises(EmbeddingExpired):
        reader.copy(arena.name, offset, block_id, memoryview(bytearray(FULL)))
    again = filled(arena, 2)
    assert (again.offset, again.block_id == block_id) == (offset, False)
    with pytest.raises(EmbeddingExpired):
        reader.hold(arena.name, offset, FULL, block_id)
    with pytest.raises(ProtocolError):
        reader.hold(arena.name, offset, FULL, "")
    with pytest.raises(EncoderLost):
        reader.hold("triptych-arena-1-0123456789abcdef", offset, FULL, block_id)


def test_a_reader_that_dies_lets_go(arena: Arena) -> None:
    block = filled(arena, 3)
    script = (
        "import sys, time; from transfer.channels.arena_reader import ArenaReader; reader = ArenaReader();"
        f"held = reader.hold({arena.name!r}, {block.offset}, {FULL}, {block.block_id!r});"
        "sys.stdout.write('held'); sys.stdout.flush(); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"held"
        del block
        assert arena.num_free_bytes == 0
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)
    assert arena.num_free_bytes == NUM_BYTES


def test_what_is_held_survives_the_end_of_its_owner(reader: ArenaReader) -> None:
    arena = Arena(NUM_BYTES)
    block = filled(arena, 4)
    held = reader.hold(arena.name, block.offset, FULL, block.block_id)
    arena.close()
    reader.close()
    assert bytes(held.memory) == bytes([4]) * FULL
    with Path(held.path).open("rb") as file:
        file.seek(held.offset)
        assert file.read(FULL) == bytes([4]) * FULL
    held.close()


def test_readers_beside_a_busy_owner_see_whole_blocks_or_a_typed_error(arena: Arena, reader: ArenaReader) -> None:
    stop = threading.Event()
    offered: list[tuple[int, str, int]] = []

    def own() -> None:
        number = 0
        while not stop.is_set():
            block = arena.allocate(PAGE)
            if block is not None:
                number = (number + 1) % 251
                block.memory[:] = bytes([number]) * PAGE
                offered[:] = [(block.offset, block.block_id, number)]

    owner = threading.Thread(target=own)
    owner.start()
    num_held = 0
    try:
        end = time.monotonic() + WAIT_S
        while num_held < 200 and time.monotonic() < end:
            for offset, block_id, number in list(offered):
                try:
                    held = reader.hold(arena.name, offset, PAGE, block_id)
                except EmbeddingExpired:
                    continue
                assert bytes(held.memory) == bytes([number]) * PAGE
                held.close()
                num_held += 1
    finally:
        stop.set()
        owner.join(WAIT_S)
    assert num_held == 200


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=120))
def test_the_board_lists_exactly_what_was_put_and_not_removed(steps: list[tuple[int, bool]]) -> None:
    arena = Arena(NUM_BYTES)
    ids = [f"{number % 3:08x}{number:024x}" for number in range(31)]  # few sets, so that they fill
    expected: dict[str, Listing] = {}
    try:
        memory = ArenaReader().map(arena.name).memory
        for number, put in steps:
            listing = Listing(new_transfer_id(), 4096 + number, 2**33 + number, number, None if number % 2 else number)
            if put and ids[number] not in expected:
                if arena.board.put(ids[number], listing):
                    expected[ids[number]] = listing
            elif not put:
                arena.board.remove(ids[number])
                expected.pop(ids[number], None)
            for transfer_id in ids:
                assert find_listing(memory, transfer_id) == expected.get(transfer_id)
    finally:
        arena.close()


def test_an_id_that_no_slot_can_hold_is_not_listed(arena: Arena) -> None:
    listing = Listing(new_transfer_id(), 4096, 1, 0, None)
    for transfer_id in ("", "short", "g" * 32, "a" * 34):
        assert not arena.board.put(transfer_id, listing)
        arena.board.remove(transfer_id)


def test_a_slot_that_changes_under_the_reader_is_not_believed(arena: Arena) -> None:
    transfer_id = new_transfer_id()
    assert arena.board.put(transfer_id, Listing(new_transfer_id(), 4096, 64, 0, None))
    whole = bytes(ArenaReader().map(arena.name).memory)
    place = whole.index(bytes.fromhex(transfer_id))
    for byte in range(place + 16, place + 64):
        torn = bytearray(whole)
        torn[byte] ^= 0xFF
        assert find_listing(torn, transfer_id) is None  # type: ignore[arg-type]
