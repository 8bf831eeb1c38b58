"""Tensors that strangers send: what is read is what was saved, and nothing else gets through.

Guards: code that runs while a file is opened, memory that a small file asks for, errors that are not the client's 4xx.
"""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoder_workers import Media
from encoder_workers.given_embeddings import is_given, open_given, pack_given
from encoder_workers.tensor_files import read_tensor
from transfer.errors import BadMedia


def torch_file(value: object) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def numpy_file(value: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, value)
    return out.getvalue()


ROWS = torch.arange(12.0).reshape(3, 4) / 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_what_torch_saved_is_read(dtype: torch.dtype) -> None:
    tensor = (ROWS * 10).to(dtype)
    assert torch.equal(read_tensor(torch_file(tensor), "it"), tensor)
    # One item of a batch: its file holds the whole batch.
    assert torch.equal(read_tensor(torch_file(tensor[1:]), "it"), tensor[1:])
    assert torch.equal(read_tensor(torch_file(tensor.T), "it"), tensor.T)
    assert not read_tensor(torch_file(ROWS.clone().requires_grad_()), "it").requires_grad


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "<i8", ">i4"])
def test_what_numpy_saved_is_read(dtype: str) -> None:
    array = (ROWS * 10).numpy().astype(dtype)
    expected = torch.from_numpy(array.astype(np.dtype(dtype).newbyteorder("=")))
    assert torch.equal(read_tensor(numpy_file(array), "it"), expected)
    assert torch.equal(read_tensor(numpy_file(np.asfortranarray(array)), "it"), expected)


class RunsCode:
    """What a hostile pickle does when it is opened."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


def test_no_code_of_a_file_runs(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    legacy = io.BytesIO()
    torch.save(RunsCode(str(mark)), legacy, _use_new_zipfile_serialization=False)
    array = np.array([RunsCode(str(mark))], dtype=object)
    for file in (torch_file(RunsCode(str(mark))), legacy.getvalue(), numpy_file(array)):
        with pytest.raises(BadMedia):
            read_tensor(file, "it")
    assert not mark.exists()


def compressed(file: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file)) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))
    return out.getvalue()


def numpy_header(header: str, body: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


REFUSED = {
    "nothing": b"",
    "text": b"hello",
    "legacy": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
    "list": torch_file([ROWS]),
    "table": torch_file({"embedding": ROWS}),
    "sparse": torch_file(ROWS.to_sparse()),
    "meta": torch_file(torch.empty(3, 4, device="meta")),
    "complex": torch_file(ROWS.to(torch.complex64)),
    "flags": torch_file(ROWS > 1),
    "repeated": torch_file(torch.zeros(1, 1).expand(2**20, 2**20)),
    "compressed": compressed(torch_file(torch.zeros(2**12, 2**10))),
    "numpy objects": numpy_file(np.array([{}], dtype=object)),
    "numpy text": numpy_file(np.array(["a"])),
    "numpy long": numpy_file(np.zeros(2, dtype=np.longdouble)),
    "numpy large": numpy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1073741824, 1024)}"),
    "numpy negative": numpy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1)}", bytes(4)),
    "numpy nested": numpy_header("(" * 3000),
    "numpy call": numpy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (len('a'),)}", bytes(4)),
    "numpy cut off": numpy_file(ROWS.numpy())[:-1],
    "torch cut off": torch_file(ROWS)[:-100],
}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_refused_without_asking_for_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadMedia, match="it "):
            read_tensor(REFUSED[name], "it")
        assert tracemalloc.get_traced_memory()[1] < 4 * len(REFUSED[name]) + 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("file", [torch_file(ROWS), numpy_file(ROWS.numpy())], ids=["torch", "numpy"])
def test_a_damaged_file_is_read_or_refused(file: bytes) -> None:
    """Whatever a byte is changed to, there is a tensor no larger than the file, or the client's error."""
    chance = np.random.default_rng(5)
    refused = 0
    for _ in range(600):
        damaged = bytearray(file)
        for _ in range(chance.integers(1, 4)):
            damaged[chance.integers(len(file))] = chance.integers(256)
        try:
            assert read_tensor(bytes(damaged), "it").nbytes <= len(file)
        except BadMedia:
            refused += 1
    assert refused > 50


def test_a_packed_embedding_is_opened_as_it_was_sent() -> None:
    packed = pack_given({"image_embeds": torch_file(ROWS), "image_grid_thw": [1, 2, 6], "times": numpy_file([0.5])})
    assert is_given(packed) and not is_given(torch_file(ROWS))
    given = open_given(Media("image", packed))
    assert torch.equal(given.rows, ROWS)
    assert {name: array.values for name, array in given.arrays.items()} == {
        "image_grid_thw": (1, 2, 6),
        "times": (0.5,),
    }


def test_a_damaged_packing_is_refused() -> None:
    packed = pack_given({"image_embeds": torch_file(ROWS), "image_grid_thw": [1, 2, 6]})
    header = packed.index(b"[[")
    cases = {
        "cut off": packed[: header + 5],
        "header": packed[:header] + b"x" + packed[header + 1 :],
        "no field image_embeds": pack_given({"image_grid_thw": [1, 2, 6]}),
        "holds a tensor": pack_given({"image_embeds": [1, 2]}),
        "neither a file": pack_given({"image_embeds": b"x"}),
        "numbers of ordinary size": pack_given({"image_embeds": torch_file(ROWS), "a": [float("nan")]}),
        "1 to 4096 numbers": pack_given({"image_embeds": torch_file(ROWS), "a": torch_file(torch.zeros(5000))}),
        "of floats": pack_given({"image_embeds": torch_file(torch.ones(3, 4, dtype=torch.int64))}),
        r"not \[0, 4\]": pack_given({"image_embeds": torch_file(ROWS[:0])}),
    }
    for message, data in cases.items():
        with pytest.raises(BadMedia, match=message):
            open_given(Media("image", data))
