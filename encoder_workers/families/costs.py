"""The cost of a pass of a vision or audio transformer, counted from its dimensions."""

from __future__ import annotations

from encoder_workers.shares import CostModel

_ATTENTION_WIDTHS = 14
"""Tensors of a row's width while it attends: residual, q, k and v before and after rotation, and attention's own."""


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
    # An MLP's matrices have as many columns, or rows, in all as its inner tensors have values.
    row_values = max(_ATTENTION_WIDTHS * width, 3 * width + mlp_weights // width)
    return CostModel(per_row=per_row, per_pair=num_full_layers * 2 * width, row_values=row_values)
