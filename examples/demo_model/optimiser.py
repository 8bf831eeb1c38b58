"""Muon for the weight matrices, AdamW for everything else, in one object with one learning-rate scale.

Muon: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
"""

import collections
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from examples.demo_model.team import Team

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
_MOMENTUM = 0.95


def orthogonalise(stack: Tensor) -> Tensor:
    """Push the singular values of each matrix of ``stack`` (S, rows, columns) towards one, in bf16 by Newton-Schulz."""
    x = stack.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    out: Tensor = x.mT if tall else x
    return out


def _orthogonal(stacks: list[Tensor], team: Team) -> Iterator[Tensor]:
    """Yield the orthogonalised matrices of all ``stacks`` in order; each process computes every ``team.size``-th."""
    found = [stack.new_zeros(stack.shape, dtype=torch.bfloat16) for stack in stacks]
    num_before = 0
    for stack, into in zip(stacks, found, strict=True):
        mine = slice((team.rank - num_before) % team.size, None, team.size)
        if len(stack[mine]):
            into[mine] = orthogonalise(stack[mine])
        num_before += len(stack)
    for stack in team.sum(found):
        yield from stack.float()


class Optimiser:
    """Updates ``modules``; matrices of the hidden layers by Muon, embeddings, norms, biases and heads by AdamW."""

    def __init__(self, network: nn.Module, heads: nn.Module, muon_rate: float, adam_rate: float) -> None:
        self._muon_rate, self._adam_rate = muon_rate, adam_rate
        self._matrices: dict[tuple[int, ...], list[nn.Parameter]] = collections.defaultdict(list)
        others: list[nn.Parameter] = list(heads.parameters())
        for name, parameter in network.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                self._matrices[tuple(parameter.shape)].append(parameter)
            else:
                others.append(parameter)
        self._momenta = {shape: torch.zeros(len(group), *shape) for shape, group in self._matrices.items()}
        self._adam = torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
        self._others = others

    def step(self, scale: float, team: Team) -> None:
        """Apply the gradients with both learning rates times ``scale``, and clear them.

        Gradients are the same in the whole team; orthogonalising, most of the work here, is divided among it.
        """
        torch.nn.utils.clip_grad_norm_(self._others, 1.0)
        for group in self._adam.param_groups:
            group["lr"] = self._adam_rate * scale
        self._adam.step()
        rate = self._muon_rate * scale
        moving, momenta = self._advance()
        for parameter, direction in zip(moving, _orthogonal(momenta, team), strict=True):
            gain = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
            with torch.no_grad():
                parameter.mul_(1 - 0.05 * rate).add_(direction, alpha=-rate * gain)
        self.clear()

    def _advance(self) -> tuple[list[nn.Parameter], list[Tensor]]:
        """Take the gradients into the momenta; return the matrices that have one and their momenta, stacked by shape.

        A matrix without a gradient stays: its old momentum would be scaled up to a full step.
        """
        moving: list[nn.Parameter] = []
        stacks: list[Tensor] = []
        for shape, matrices in self._matrices.items():
            found = [(index, p, p.grad) for index, p in enumerate(matrices) if p.grad is not None]
            if not found:
                continue
            places = torch.tensor([index for index, _, _ in found])
            gradients = torch.stack([gradient for _, _, gradient in found])
            momentum = self._momenta[shape][places].lerp_(gradients, 1 - _MOMENTUM)
            self._momenta[shape][places] = momentum
            moving += [parameter for _, parameter, _ in found]
            stacks.append(gradients.lerp_(momentum, _MOMENTUM))
        return moving, stacks

    def clear(self) -> None:
        for parameter in [*self._others, *(p for group in self._matrices.values() for p in group)]:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self._adam.state_dict(), "momenta": self._momenta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._adam.load_state_dict(state["adam"])
        self._momenta = state["momenta"]
