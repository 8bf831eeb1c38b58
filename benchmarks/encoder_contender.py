"""One contender of the encoder benchmark in a process of its own: JSON order in, JSON figures out.

python -m benchmarks.encoder_contender '{"contender": "triptych", "model": "qwen2_vl", ...}'
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.encoder_models import FAMILIES, Batch, load_reference, media_of
from encoder_workers import Encoder, load_encoder, load_processor
from encoder_workers.checkpoint import Checkpoint
from encoder_workers.media import Limits
from encoder_workers.ranks import GroupTower
from encoder_workers.registry import find_family, load_family
from npu_kernels import resolve_dtype, select_ops

_MATRIX_ROWS = 4096
_MATRIX_REPEATS = 5


@dataclass(frozen=True)
class Order:
    """What to run: on `threads` threads, or as many for each of `ranks` ranks."""

    contender: str
    model: str
    case: str
    dtype: str
    threads: int
    ranks: int
    repeats: int
    checkpoint: str
    output: str


def main() -> None:
    """Print the figures of one order as the last line."""
    order = Order(**json.loads(sys.argv[1]))
    torch.set_num_threads(order.threads)
    dtype = resolve_dtype(order.dtype)
    if order.contender == "matrix":
        print(json.dumps(matrix_figures(order, dtype)))
        return
    processor = load_processor(order.checkpoint)
    limits = Limits(tokens=10**6)
    batch = [processor.preprocess(processor.decode(item, limits)) for item in media_of(order.case)]
    with torch.inference_mode():
        run, processes, close = CONTENDERS[order.contender](order, batch, dtype)
        try:
            tokens = run()
            times = [_timed(run, processes) for _ in range(order.repeats)]
        finally:
            close()
    save_file({"tokens": tokens.float().contiguous()}, order.output)
    figures = {"seconds": min(times)[0], "cpu_seconds": min(cpu for _, cpu in times), "num_tokens": len(tokens)}
    print(json.dumps(figures))


def _timed(run: Callable[[], object], processes: Sequence[int]) -> tuple[float, float]:
    """Seconds of a pass, and processor seconds of the process that took most; the latter count no waiting."""
    before = [_cpu_seconds(process) for process in processes]
    begun = time.perf_counter()
    run()
    seconds = time.perf_counter() - begun
    after = [_cpu_seconds(process) for process in processes]
    return seconds, max(last - first for first, last in zip(before, after, strict=True))


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


Runner = tuple[Callable[[], torch.Tensor], Sequence[int], Callable[[], None]]
"""A pass, the processes that compute it, and what ends them."""


def triptych(order: Order, batch: Batch, dtype: torch.dtype) -> Runner:
    """load_encoder, over as many ranks as asked for."""
    encoder: Encoder = load_encoder(order.checkpoint, dtype=dtype, ranks=order.ranks, limits=Limits(tokens=10**6))
    tower = encoder._tower
    processes = tower.process_ids if isinstance(tower, GroupTower) else [os.getpid()]
    return lambda: torch.cat([item.tensor for item in encoder.forward(batch)]), processes, encoder.close


def huggingface(order: Order, batch: Batch, dtype: torch.dtype) -> Runner:
    """Hugging Face's tower with scaled-dot-product attention."""
    tower = load_reference(Path(order.checkpoint), order.model, dtype)
    return lambda: FAMILIES[order.model].run(tower, batch, dtype), [os.getpid()], lambda: None


def vllm(order: Order, batch: Batch, dtype: torch.dtype) -> Runner:
    """vLLM's own tower, in this process and without an engine."""
    tower = _vllm_tower(order, dtype)
    rows = torch.cat([item.inputs for item in batch]).float().sub_(127.5).div_(127.5).to(dtype)
    grids = [list(item.grid) for item in batch]
    return lambda: tower(rows, grid_thw=grids), [os.getpid()], lambda: None


def _vllm_tower(order: Order, dtype: torch.dtype) -> nn.Module:
    from safetensors.torch import load_file
    from transformers import AutoConfig
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.model_executor.models import qwen2_5_vl, qwen2_vl, qwen3_vl

    classes: dict[str, Any] = {
        "qwen2_vl": qwen2_vl.Qwen2VisionTransformer,
        "qwen2_5_vl": qwen2_5_vl.Qwen2_5_VisionTransformer,
        "qwen3_vl": qwen3_vl.Qwen3_VisionTransformer,
    }
    config = json.loads((Path(order.checkpoint) / "config.json").read_text())
    vision = AutoConfig.for_model(order.model, vision_config=config["vision_config"]).vision_config
    torch.set_default_dtype(dtype)
    context = set_current_vllm_config(VllmConfig(device_config=DeviceConfig("cpu")))
    context.__enter__()  # for the life of this process
    rendezvous = f"file://{order.output}.rendezvous"
    init_distributed_environment(1, 0, rendezvous, 0, backend="gloo")
    initialize_model_parallel(1)
    tower: Any = classes[order.model](vision)
    prefix = FAMILIES[order.model].prefix
    weights = load_file(Path(order.checkpoint) / "model.safetensors")
    loaded = tower.load_weights((name.removeprefix(prefix), tensor.to(dtype)) for name, tensor in weights.items())
    missing = {name for name, _ in tower.named_parameters()} - set(loaded)
    assert not missing, missing
    # The engine does this after loading: CPU linear layers choose their kernel there.
    for module in tower.modules():
        method = getattr(module, "quant_method", None)
        if method is not None:
            method.process_weights_after_loading(module)
    torch.set_num_threads(order.threads)
    built: nn.Module = tower.eval()
    return built


CONTENDERS: dict[str, Callable[[Order, Batch, torch.dtype], Runner]] = {
    "triptych": triptych,
    "huggingface": huggingface,
    "vllm": vllm,
}


def matrix_figures(order: Order, dtype: torch.dtype) -> dict[str, float]:
    """Operations per second of one large matrix product of the tower's own width, and operations of one pass."""
    checkpoint = Checkpoint(order.checkpoint)
    family = load_family(find_family(checkpoint))
    cpu = torch.device("cpu")
    tower: Any = family.load_tower(checkpoint, select_ops("auto", cpu), cpu, dtype)
    config = tower._config
    x = torch.randn(_MATRIX_ROWS, config.width, dtype=torch.float32).to(dtype)
    weight = torch.randn(config.mlp_width, config.width, dtype=torch.float32).to(dtype)
    torch.nn.functional.linear(x, weight)
    times = [_timed(lambda: torch.nn.functional.linear(x, weight), [os.getpid()]) for _ in range(_MATRIX_REPEATS)]
    best = min(times)[0]
    processor = family.load_processor(checkpoint)
    limits = Limits(tokens=10**6)
    batch = [processor.preprocess(processor.decode(item, limits)) for item in media_of(order.case)]
    operations = 2 * _MATRIX_ROWS * config.width * config.mlp_width
    return {
        "rate": operations / best,
        "operations": _operations(tower, batch),
    }


def _operations(tower: Any, batch: Sequence[Any]) -> float:
    """Multiplications and additions of matrix products in one pass; the convolutions of audio are left out."""
    shapes = [tower.shape(item) for item in batch]
    outside = 0
    num_rows, num_tokens = sum(shape.num_rows for shape in shapes), sum(i.metadata.num_tokens for i in batch)
    for name, layer in tower._parameters.named_modules():
        if isinstance(layer, nn.Linear) and not name.startswith(("blocks.", "layers.")):
            size = layer.in_features * layer.out_features
            outside += size * (num_rows if name.startswith("patch_embed") else num_tokens)
    inside: float = sum(tower.costs.of(shape) for shape in shapes)
    return 2.0 * (inside + outside)


if __name__ == "__main__":
    main()
