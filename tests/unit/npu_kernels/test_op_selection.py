"""Choosing operators, and the start-up check that stops a replica whose operators are wrong."""

from dataclasses import replace

import pytest
import torch

from npu_kernels import (
    OP_NAMES,
    AttentionShape,
    KernelMismatch,
    Segments,
    check_ops,
    resolve_device,
    resolve_dtype,
    select_ops,
    torch_ops,
)

CPU = torch.device("cpu")
SHAPE = AttentionShape(num_heads=4, head_dim=80)


@pytest.mark.parametrize("spec", ["auto", {}, {"attention": "torch"}])
def test_cpu_gets_its_backend_and_the_reference_for_the_rest(spec: str | dict[str, str]) -> None:
    ops = select_ops(spec, CPU)
    assert set(ops.sources) == set(OP_NAMES)
    assert ops.sources["rotary"] == "cpu"
    assert ops.sources["layer_norm"] == "torch"
    assert (ops.attention is torch_ops.attention) == (ops.sources["attention"] == "torch")


def test_the_reference_is_there_by_name() -> None:
    ops = select_ops("torch", CPU)
    assert set(ops.sources.values()) == {"torch"}
    assert ops.attention is torch_ops.attention


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fast", "unknown ops backend 'fast'"),
        ({"attention": "fast"}, "unknown ops backend 'fast'"),
        ({"atention": "torch"}, "unknown operators in the ops table: atention"),
    ],
)
def test_bad_names_are_told(spec: str | dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_ops(spec, CPU)


@pytest.mark.parametrize("spec", ["torch", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_runs_on_a_cpu_passes_the_check_in_every_type(spec: str, dtype: torch.dtype) -> None:
    errors = check_ops(select_ops(spec, CPU), CPU, dtype, SHAPE)
    assert set(errors) == set(OP_NAMES)


def wrong_scale(q, k, v, segments, *, scale):
    return torch_ops.attention(q, k, v, segments, scale=128**-0.5)


def lengths_taken_as_one(q, k, v, segments, *, scale):
    return torch_ops.attention(q, k, v, Segments((segments.num_rows,)), scale=scale)


def swapped_halves(x):
    return torch_ops.swiglu(torch.cat(x.chunk(2, -1)[::-1], -1))


def interleaved_pairs(x, cos, sin):
    half = x.shape[-1] // 2
    paired = torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
    turned = torch_ops.rotary(paired, cos, sin)
    return torch.stack((turned[..., :half], turned[..., half:]), dim=-1).flatten(-2)


def not_a_number(x):
    return x * float("nan")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("attention", wrong_scale),
        ("attention", lengths_taken_as_one),
        ("swiglu", swapped_halves),
        ("rotary", interleaved_pairs),
        ("gelu", not_a_number),
        ("rms_norm", lambda x, weight, eps: torch_ops.layer_norm(x, weight, torch.zeros_like(weight), eps)),
        ("add_rms_norm", lambda x, residual, weight, eps: (torch_ops.rms_norm(x, weight, eps), x + residual)),
        ("patch_merge", lambda x, *weights, unit: torch_ops.patch_merge(x.flip(0), *weights, unit=unit)),
    ],
)
def test_check_catches(name: str, operator, dtype: torch.dtype) -> None:
    ops = replace(select_ops("auto", CPU), **{name: operator})
    with pytest.raises(KernelMismatch, match=name):
        check_ops(ops, CPU, dtype, SHAPE)


@pytest.mark.parametrize(
    ("name", "operator", "dtype"),
    [
        ("gelu", torch_ops.quick_gelu, torch.float32),
        ("gelu", torch_ops.quick_gelu, torch.bfloat16),
        ("gelu", torch_ops.quick_gelu, torch.float16),
        ("quick_gelu", torch_ops.gelu, torch.bfloat16),
        ("gelu", torch_ops.gelu_tanh, torch.float32),
        ("gelu_tanh", torch_ops.gelu, torch.float32),
    ],
)
def test_check_tells_the_gelus_apart(name: str, operator, dtype: torch.dtype) -> None:
    """Exact and tanh forms differ by less than a half type can show; QuickGELU from either by more."""
    with pytest.raises(KernelMismatch, match=name):
        check_ops(replace(select_ops("auto", CPU), **{name: operator}), CPU, dtype, SHAPE)


def test_devices_and_types_by_name() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_dtype("bfloat16") is resolve_dtype(torch.bfloat16) is torch.bfloat16
    for bad in ("tpu", "cpus", ""):
        with pytest.raises(ValueError, match="unknown device"):
            resolve_device(bad)
    for bad_dtype in ("int8", torch.int64):
        with pytest.raises(ValueError, match="unsupported dtype"):
            resolve_dtype(bad_dtype)


def test_an_absent_device_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no cuda device is available"):
        resolve_device("cuda")
