"""Loads a tower's parameters from a checkpoint, and insists that they are exactly the ones it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

from encoder_workers.checkpoint import Checkpoint, CheckpointError
from npu_kernels import Linear

Sources = Callable[[str], tuple[str, ...]]
"""Names in the checkpoint of the tensors that, joined along dim 0, make a parameter; from the parameter's name."""


def suffix_sources(prefix: str, renamed: Mapping[str, Sequence[str]]) -> Sources:
    """Parameters stored under `prefix` and their own name, but for those with a suffix in `renamed`."""

    def sources(parameter: str) -> tuple[str, ...]:
        for suffix, parts in renamed.items():
            if parameter.endswith(suffix):
                stem = parameter.removesuffix(suffix)
                return tuple(prefix + stem + part for part in parts)
        return (prefix + parameter,)

    return sources


def tower_prefix(checkpoint: Checkpoint, candidates: Sequence[str]) -> str:
    """The one of `candidates` under which the checkpoint keeps the tower: it changed between releases."""
    for prefix in candidates:
        if checkpoint.names([prefix]):
            return prefix
    raise CheckpointError(f"{checkpoint.directory} has no encoder weights under {' or '.join(candidates)}")


def load_parameters(
    module: nn.Module,
    checkpoint: Checkpoint,
    prefixes: Sequence[str],
    sources: Sources,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Fill `module`, built on the meta device, from the tensors under `prefixes`; nothing else is read.

    A tensor of more dimensions than its parameter is flattened to it (patch convolutions). Raises CheckpointError that
    names missing, unexpected and misshapen tensors.
    """
    names = checkpoint.names(prefixes)
    expected = dict(module.named_parameters())
    parts_of = {parameter: sources(parameter) for parameter in expected}
    _require_same({part for parts in parts_of.values() for part in parts}, set(names), checkpoint)

    pieces = {name: tensor.to(device, dtype) for name, tensor in checkpoint.tensors(names)}
    state: dict[str, torch.Tensor] = {}
    for parameter, parts in parts_of.items():
        tensors = [pieces.pop(part) for part in parts]
        joined = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        shape = expected[parameter].shape
        fits = joined.numel() == shape.numel() and (joined.shape[0] in (1, shape[0]))
        if not fits:
            raise CheckpointError(
                f"{' + '.join(parts)}: shape {list(joined.shape)} in the checkpoint, but its configuration asks for "
                f"{list(shape)}"
            )
        state[parameter] = joined.reshape(shape).contiguous()
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False).eval()
    for layer in module.modules():
        if isinstance(layer, Linear):
            layer.pack()


def _require_same(wanted: set[str], found: set[str], checkpoint: Checkpoint) -> None:
    problems = [
        f"{label} {_some(names)}"
        for label, names in (("missing", wanted - found), ("unexpected", found - wanted))
        if names
    ]
    if problems:
        raise CheckpointError(f"the encoder weights of {checkpoint.directory} do not fit: {'; '.join(problems)}")


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - 4} more" if len(ordered) > 4 else ""
    return ", ".join(ordered[:4]) + more
