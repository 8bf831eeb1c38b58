"""The cost of a pass of a vision or audio transformer, counted from its dimensions."""

from __future__ import annotations

from encoder_workers.shares import CostModel


def transformer_costs(
    *, width: int, mlp_weights: int, num_full_layers: int, num_window_layers: int = 0, window_rows: int = 0
) -> CostModel:
    """Multiply-adds of all layers; what comes before and after them is less than a layer.

    Args:
        mlp_weights: of one layer's MLP.
        window_rows: rows of an attention window, whose cost therefore grows with the rows alone.
    """
    num_layers = num_full_layers + num_window_layers
    per_row = num_layers * (4 * width**2 + mlp_weights) + num_window_layers * 2 * width * window_rows
    return CostModel(per_row=per_row, per_pair=num_full_layers * 2 * width)
