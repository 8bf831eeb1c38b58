"""Tests of the Ascend backend that run inside a process where torch_npu is importable (see test_npu_backend.py)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch_npu
from make_random_checkpoint import FAMILIES, make_checkpoint

from encoder_workers import Embedding, Media, load_encoder
from npu_kernels import OP_NAMES, AttentionShape, Segments, ascend, check_ops, resolve_device, select_ops, torch_ops
from tests.npu import cpu_kernels
from tests.npu.dispatched import dispatched_operators
from tests.unit.encoder_workers.encoder_fixtures import image_file, noise_image
from tests.unit.encoder_workers.test_every_family import items

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


def test_older_chips_keep_to_the_reference_where_theirs_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """There npu_fast_gelu is another formula, and fused inference attention does not exist."""
    device = torch.device("npu")
    for chip, missing in (("Ascend310P3", {"attention", "quick_gelu"}), ("Ascend910B4", set())):
        monkeypatch.setattr(torch_npu.npu, "get_device_name", lambda _, chip=chip: chip)
        assert set(ascend.provided_ops(torch.device("cpu"))) - set(ascend.provided_ops(device)) == missing


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("head_dim", [72, 80])
def test_heads_are_padded_with_the_scale_of_their_own_width(dtype: torch.dtype, head_dim: int) -> None:
    """The scale of the padded width, and the operator's own of 1.0, are visibly wrong, and of the right shape."""
    segments, scale = Segments((40, 24)), head_dim**-0.5
    q, k, v = torch.randn(3, 64, 2, head_dim, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = torch_ops.attention(q.float(), k.float(), v.float(), segments, scale=scale)

    def error(used: float) -> float:
        return float((ascend.attention(q, k, v, segments, scale=used).float() - expected).abs().max())

    assert error(scale) < 2e-2
    assert min(error(128**-0.5), error(1.0)) > 0.1


@pytest.mark.parametrize(
    "change", [{"atten_mask": torch.ones(10, 10).bool()}, {"sparse_mode": 3}], ids=["mask", "causal"]
)
def test_a_mask_never_reaches_the_fused_operator(change: dict[str, object]) -> None:
    """Some are ignored there without a word, and a causal one is wrong for a tower."""
    q = torch.randn(10, 2, 64).bfloat16()
    lengths = {"actual_seq_lengths": [4, 10], "actual_seq_lengths_kv": [4, 10]}
    with pytest.raises(RuntimeError, match="mask"):
        torch_npu.npu_fused_infer_attention_score(q, q, q, num_heads=2, input_layout="TND", **lengths, **change)


def test_empty_windows_are_gone_before_the_operator() -> None:
    """Two equal cumulative lengths one after the other are refused, so a window without rows must not become any."""
    q = torch.randn(10, 2, 64).bfloat16()
    with pytest.raises(RuntimeError, match="cumulative"):
        torch_npu.npu_fused_infer_attention_score(
            q, q, q, num_heads=2, input_layout="TND", actual_seq_lengths=[4, 4, 10], actual_seq_lengths_kv=[4, 4, 10]
        )
    cpu_kernels.LENGTHS.clear()
    ascend.attention(q, q, q, Segments.of([4, 0, 6]), scale=0.125)
    assert cpu_kernels.LENGTHS == [(4, 10)]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("family") / request.param
    make_checkpoint(folder, family=request.param, seed=3)
    return folder


def tokens(model: Path, dtype: str, ops: str) -> list[torch.Tensor]:
    encoder = load_encoder(model, dtype=dtype, ops=ops)
    cpu_kernels.CALLS.clear()
    results = encoder.encode(items(encoder.modalities[0]))
    assert all(isinstance(result, Embedding) and result.tensor.is_inference() for result in results)
    return [result.tensor.float() for result in results if isinstance(result, Embedding)]


def test_every_tower_runs_on_the_ascend_path(model: Path) -> None:
    """No further from float32 than the plain operators in bfloat16 are, on the fused attention and GELU."""
    full, half = tokens(model, "float32", "torch"), tokens(model, "bfloat16", "torch")
    fused = tokens(model, "bfloat16", "npu")
    assert cpu_kernels.CALLS["attention"] > 0
    assert cpu_kernels.CALLS["gelu_none"] > 0, "a merger, a projector or a block has an exact GELU"
    for got, rounded, exact in zip(fused, half, full, strict=True):
        assert (got - exact).norm() < 1.2 * (rounded - exact).norm()


def test_towers_call_nothing_that_fails_or_waits_on_the_device(model: Path) -> None:
    """Torch's own GELU is the tanh form there; the others fail on some chips, or wait for the device in every layer."""
    encoder = load_encoder(model, dtype="bfloat16", ops="npu")
    prepared = [encoder.preprocess(encoder.decode(item)) for item in items(encoder.modalities[0])]
    encoder.forward(prepared)  # What is computed once, at the first pass, may wait.
    called = dispatched_operators(lambda: encoder.forward(prepared))
    assert "npu.npu_fused_infer_attention_score" in called
    forbidden = {"aten.gelu", "aten.nonzero", "aten.masked_select", "aten.unique_consecutive", "aten.index_put_"}
    forbidden |= {"aten._local_scalar_dense", "aten.scaled_dot_product_attention", "npu.npu_format_cast"}
    assert not called & forbidden


def test_windows_and_whole_frames_have_lengths_of_their_own(tmp_path: Path) -> None:
    """One table for all layers, kept from the first, would be wrong in every layer of the other kind."""
    make_checkpoint(tmp_path / "model")
    encoder = load_encoder(tmp_path / "model", dtype="bfloat16", ops="npu")
    full_layers = encoder._tower._config.full_attention_layers  # type: ignore[union-attr]
    media = [Media("image", image_file(noise_image(*size), "PNG")) for size in ((150, 220), (224, 224))]
    cpu_kernels.LENGTHS.clear()
    results = encoder.encode(media)
    patches = [result.metadata.num_patches for result in results if isinstance(result, Embedding)]
    ends = (patches[0], sum(patches))
    assert 0 < len(full_layers) < len(cpu_kernels.LENGTHS)
    for layer, lengths in enumerate(cpu_kernels.LENGTHS):
        assert (lengths == ends) == (layer in full_layers)
        assert lengths[-1] == ends[-1] and set(ends) <= set(lengths)
