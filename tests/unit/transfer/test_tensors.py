"""Guards: bytes that change between a tensor and the wire, and copies where none is wanted."""

import pytest
import torch

from transfer.dtypes import DTYPE_BYTES
from transfer.tensors import (
    HostEmbedding,
    buffer_to_tensor,
    dtype_name,
    empty_buffer,
    tensor_to_buffer,
    torch_dtype,
)


@pytest.mark.parametrize("name", DTYPE_BYTES)
def test_bytes_go_there_and_back_exactly(name: str) -> None:
    source = torch.randn(7, 5).to(torch_dtype(name))
    buffer = empty_buffer(7 * 5 * DTYPE_BYTES[name])
    target = buffer_to_tensor(buffer, (7, 5), name)
    buffer[:] = tensor_to_buffer(source)
    assert torch.equal(target.view(torch.uint8), source.view(torch.uint8))
    assert dtype_name(target.dtype) == name
    assert buffer.nbytes == 7 * 5 * DTYPE_BYTES[name]


def test_a_contiguous_tensor_is_not_copied() -> None:
    source = torch.zeros(2, 3, dtype=torch.bfloat16)
    buffer = tensor_to_buffer(source)
    source.fill_(1.0)
    assert bytes(buffer) == bytes(tensor_to_buffer(torch.ones(2, 3, dtype=torch.bfloat16)))


def test_a_strided_tensor_is_sent_in_row_order() -> None:
    source = torch.arange(6, dtype=torch.float32).view(2, 3)
    assert bytes(tensor_to_buffer(source.t())) == bytes(tensor_to_buffer(source.t().clone().contiguous()))


def test_a_tensor_with_gradient_is_accepted() -> None:
    assert tensor_to_buffer(torch.ones(1, 2, requires_grad=True)).nbytes == 8


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        tensor_to_buffer(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="float8"):
        torch_dtype("float8")


def test_memory_of_any_size_is_writable_and_outlives_its_buffer() -> None:
    for num_rows in (1, 1000, 3_000_000):
        buffer = empty_buffer(num_rows * 4)
        assert buffer.nbytes == num_rows * 4
        tensor = buffer_to_tensor(buffer, (num_rows, 1), "float32")
        buffer[-4:] = bytes(tensor_to_buffer(torch.full((1,), 7.0)))
        del buffer
        tensor[0] += 0.0
        assert tensor[-1].item() == 7.0


def test_an_embedding_on_the_host_is_that_of_its_tensor() -> None:
    tensor = torch.arange(12, dtype=torch.bfloat16).view(4, 3)[::2]
    embedding = HostEmbedding.of(tensor)
    assert (embedding.shape, embedding.dtype, embedding.nbytes) == ((2, 3), "bfloat16", 12)
    assert torch.equal(buffer_to_tensor(embedding.memory, embedding.shape, embedding.dtype), tensor)
