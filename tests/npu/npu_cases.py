"""Tests of the Ascend backend that run inside a process where torch_npu is importable (see test_npu_backend.py)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch_npu
from make_random_checkpoint import make_checkpoint

from encoder_workers import Embedding, Media, load_encoder
from npu_kernels import OP_NAMES, AttentionShape, Segments, ascend, check_ops, resolve_device, select_ops, torch_ops
from tests.npu import cpu_kernels
from tests.unit.encoder_workers.encoder_fixtures import image_file, noise_image

CPU = torch.device("cpu")
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module", autouse=True)
def kernels() -> Iterator[None]:
    library = cpu_kernels.register()
    yield
    del library


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("head_dim", [32, 64, 72, 80, 128, 160])
def test_every_operator_passes_the_start_up_check(dtype: torch.dtype, head_dim: int) -> None:
    errors = check_ops(select_ops("npu", CPU), CPU, dtype, AttentionShape(4, head_dim))
    assert set(errors) == set(OP_NAMES)


def test_fused_operators_come_from_the_package() -> None:
    sources = select_ops("npu", CPU).sources
    assert {name for name, source in sources.items() if source == "torch"} == {"patch_embed", "layer_norm"}
    assert select_ops({"attention": "npu"}, CPU).sources["rms_norm"] == "cpu"


@pytest.mark.parametrize("dtype", HALF)
def test_attention_of_windows_and_frames(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    segments = Segments((64, 32, 64, 32, 16, 64))
    qkv = torch.randn(segments.num_rows, 12, 80, generator=generator).to(dtype)
    q, k, v = torch.split(qkv, 4, dim=1)
    before = cpu_kernels.CALLS["attention"]
    got = ascend.attention(q, k, v, segments, scale=80**-0.5)
    assert cpu_kernels.CALLS["attention"] == before + 1
    expected = torch_ops.attention(q.float(), k.float(), v.float(), segments, scale=80**-0.5)
    assert got.shape == q.shape and got.dtype == dtype
    assert (got.float() - expected).abs().max() < 2e-2


def test_more_segments_than_one_call_takes() -> None:
    segments = Segments((2, 3) * 4100)
    q, k, v = torch.randn(3, segments.num_rows, 1, 64, generator=torch.Generator().manual_seed(4)).bfloat16()
    before = cpu_kernels.CALLS["attention"]
    got = ascend.attention(q, k, v, segments, scale=0.125)
    assert cpu_kernels.CALLS["attention"] == before + 3
    assert (
        got.float() - torch_ops.attention(q.float(), k.float(), v.float(), segments, scale=0.125)
    ).abs().max() < 2e-2


def test_float32_and_huge_heads_take_the_reference() -> None:
    before = cpu_kernels.CALLS["attention"]
    for head_dim, dtype in ((64, torch.float32), (256, torch.bfloat16)):
        q, k, v = torch.randn(3, 10, 2, head_dim).to(dtype)
        got = ascend.attention(q, k, v, Segments((4, 6)), scale=0.1)
        assert torch.equal(got, torch_ops.attention(q, k, v, Segments((4, 6)), scale=0.1))
    assert cpu_kernels.CALLS["attention"] == before


@pytest.mark.parametrize("dtype", HALF)
def test_shape_rules_of_the_package_accept_every_call(dtype: torch.dtype) -> None:
    """On the meta device the real package's own rules run, not our kernels."""
    segments = Segments((50, 30, 20))

    def meta(*size: int) -> torch.Tensor:
        return torch.empty(size, device="meta", dtype=dtype)

    q, angles = meta(100, 16, 80), torch.empty(100, 80, device="meta")
    assert ascend.attention(q, q, q, segments, scale=0.1).shape == q.shape
    assert ascend.rotary(q, angles, angles).shape == q.shape
    assert ascend.rotary(q, angles, angles).dtype == dtype
    x, weight = meta(100, 1280), meta(1280)
    assert ascend.rms_norm(x, weight, 1e-6).shape == x.shape
    normed, total = ascend.add_rms_norm(x, x, weight, 1e-6)
    assert normed.shape == total.shape == x.shape
    assert ascend.swiglu(x).shape == (100, 640)


def test_a_misspelt_argument_is_refused_by_the_package() -> None:
    with pytest.raises(RuntimeError, match="eps"):
        torch_npu.npu_rms_norm(torch.ones(2, 4), torch.ones(4), eps=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actual_seq_lengths": [4, 6], "actual_seq_lengths_kv": [4, 6]}, "ending at T"),  # per segment, not cumulative
        ({"actual_seq_lengths": [0, 4, 10], "actual_seq_lengths_kv": [0, 4, 10]}, "leading 0"),
        ({"actual_seq_lengths_kv": None}, "of queries and of keys"),
        ({"input_layout": "BSND"}, "layout"),
    ],
)
def test_kernels_refuse_what_the_device_refuses(change: dict[str, object], message: str) -> None:
    q = torch.randn(10, 2, 64).bfloat16()
    arguments: dict[str, object] = {
        "num_heads": 2,
        "input_layout": "TND",
        "actual_seq_lengths": [4, 10],
        "actual_seq_lengths_kv": [4, 10],
    }
    torch_npu.npu_fused_infer_attention_score(q, q, q, **arguments)
    with pytest.raises(RuntimeError, match=message):
        torch_npu.npu_fused_infer_attention_score(q, q, q, **(arguments | change))
    for bad in (q.float(), torch.randn(10, 2, 80).bfloat16(), q.transpose(0, 1)):
        with pytest.raises(RuntimeError, match=r"half precision|head dim|contiguous"):
            torch_npu.npu_fused_infer_attention_score(bad, bad, bad, **arguments)


def test_an_encoder_runs_on_the_ascend_path(tmp_path: Path) -> None:
    """Every layer of the small Qwen2.5-VL tower through the fused operators, against the torch reference."""
    make_checkpoint(tmp_path / "model")
    media = [
        Media("image", image_file(noise_image(*size, seed=i), "PNG")) for i, size in enumerate([(150, 220), (90, 60)])
    ]
    expected = load_encoder(tmp_path / "model", dtype="float32", ops="torch").encode(media)
    reference = load_encoder(tmp_path / "model", dtype="bfloat16", ops="torch").encode(media)
    encoder = load_encoder(tmp_path / "model", dtype="bfloat16", ops="npu")
    cpu_kernels.CALLS.clear()
    got = encoder.encode(media)
    depth = 4
    assert dict(+cpu_kernels.CALLS) == {
        "attention": depth,
        "rotary": depth,
        "rms_norm": 1,
        "add_rms_norm": 2 * depth,
        "swiglu": depth,
        "gelu_none": 1,
    }
    for fused, half, full in zip(got, reference, expected, strict=True):
        assert isinstance(fused, Embedding) and isinstance(half, Embedding) and isinstance(full, Embedding)
        error = (fused.tensor.float() - full.tensor).norm() / full.tensor.norm()
        rounding = (half.tensor.float() - full.tensor).norm() / full.tensor.norm()
        assert error < 1.2 * rounding, (error, rounding)  # no further from float32 than bfloat16 itself is


def test_no_device_is_said_plainly() -> None:
    with pytest.raises(ValueError, match="no npu device is available here"):
        resolve_device("npu")
