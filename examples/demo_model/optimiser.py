"""Muon for the weight matrices, AdamW for everything else, in one object with one learning-rate scale.

Muon: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
"""

import collections
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
_MOMENTUM = 0.95


def orthogonalise(stack: Tensor) -> Tensor:
    """Push the singular values of each matrix of ``stack`` (S, rows, columns) towards one, by Newton-Schulz."""
    x = stack.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    out: Tensor = (x.mT if tall else x).float()
    return out


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

    def step(self, scale: float) -> None:
        """Apply the gradients with both learning rates times ``scale``, and clear them."""
        torch.nn.utils.clip_grad_norm_(self._others, 1.0)
        for group in self._adam.param_groups:
            group["lr"] = self._adam_rate * scale
        self._adam.step()
        rate = self._muon_rate * scale
        for shape, matrices in self._matrices.items():
            # A matrix without a gradient stays: its old momentum would be scaled up to a full step.
            moving = [(index, p, p.grad) for index, p in enumerate(matrices) if p.grad is not None]
            if not moving:
                continue
            places = torch.tensor([index for index, _, _ in moving])
            gradients = torch.stack([gradient for _, _, gradient in moving])
            momentum = self._momenta[shape][places].lerp_(gradients, 1 - _MOMENTUM)
            self._momenta[shape][places] = momentum
            update = orthogonalise(gradients.lerp_(momentum, _MOMENTUM))
            gain = max(1.0, shape[0] / shape[1]) ** 0.5
            with torch.no_grad():
                for (_, parameter, _), direction in zip(moving, update, strict=True):
                    parameter.mul_(1 - 0.05 * rate).add_(direction, alpha=-rate * gain)
        self.clear()

    def clear(self) -> None:
        for parameter in [*self._others, *(p for group in self._matrices.values() for p in group)]:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self._adam.state_dict(), "momenta": self._momenta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._adam.load_state_dict(state["adam"])
        self._momenta = state["momenta"]
