"""Guards: two different items with one key (one user sees another's image), one item with two keys, reused ids."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from transfer.keys import host_id, item_key, new_transfer_id

BASE = (b"media", "image", (("min_pixels", 10), ("fps", 2.0)), "model", "rev", "tenant")


def test_every_ingredient_changes_the_key() -> None:
    variants = [
        BASE,
        (b"other", *BASE[1:]),
        (BASE[0], "video", *BASE[2:]),
        (*BASE[:2], (("min_pixels", 11), ("fps", 2.0)), *BASE[3:]),
        (*BASE[:2], (("min_pixels", "10"), ("fps", 2.0)), *BASE[3:]),
        (*BASE[:2], (("min_pixels", 10.0), ("fps", 2.0)), *BASE[3:]),
        (*BASE[:2], (("min_pixels", 10),), *BASE[3:]),
        (*BASE[:3], "model2", "rev", "tenant"),
        (*BASE[:3], "model", "rev2", "tenant"),
        (*BASE[:3], "model", "rev", "tenant2"),
        (*BASE[:3], "mode", "lrev", "tenant"),
        (*BASE[:3], "model", "revtenant", ""),
    ]
    keys = [item_key(*variant) for variant in variants]  # type: ignore[arg-type]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 64 for key in keys)


def test_a_flag_is_not_a_number() -> None:
    keys = {item_key(b"m", "image", (("resize", value),), "m", "r", "t") for value in (True, 1, 1.0, "True", "1")}
    assert len(keys) == 5


@given(st.permutations([("a", 1), ("b", True), ("c", "x"), ("d", 2.5)]))
def test_the_order_of_options_does_not_matter(options: list[tuple[str, int | float | str | bool]]) -> None:
    first = (("a", 1), ("b", True), ("c", "x"), ("d", 2.5))
    assert item_key(b"m", "image", options, "m", "r", "t") == item_key(b"m", "image", first, "m", "r", "t")


def test_transfer_ids_are_128_random_bits() -> None:
    ids = {new_transfer_id() for _ in range(10_000)}
    assert len(ids) == 10_000
    assert all(len(bytes.fromhex(transfer_id)) == 16 for transfer_id in ids)


def test_another_process_on_this_host_has_the_same_host_id() -> None:
    command = [sys.executable, "-c", "import sys; from transfer.keys import host_id; sys.stdout.write(host_id())"]
    other = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert other == host_id()
