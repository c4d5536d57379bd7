"""Total weights and gradients of two chains of linear layers that meet in a third.

Shape letters: N problems side by side, D features of both modalities, H hidden units.
"""

from typing import Any

import numpy as np

from modgrad.theory.statistics import Array


def products(
    own: list[list[Array]], shared: list[Array]
) -> tuple[list[list[Array]], list[Array], Array]:
    """What multiplies each layer from above, [N, 1, H], and the total weights [N, 1, D]."""
    row = np.ones((len(own[0][0]), 1, 1))
    above_shared: list[Array] = []
    for layer in reversed(shared):
        above_shared.insert(0, row)
        row = row @ layer
    above, totals = [], []
    for layers in own:
        rows: list[Array] = []
        r = row
        for layer in reversed(layers):
            rows.insert(0, r)
            r = r @ layer
        above.append(rows)
        totals.append(r)
    return above, above_shared, np.concatenate(totals, 2)


def gradients(
    own: list[list[Array]],
    shared: list[Array],
    above: list[list[Array]],
    above_shared: list[Array],
    residual: Array,
    parts: list[slice],
) -> tuple[list[list[Array]], list[Array]]:
    """dL/dW_l = (what is above l)^T (what is below l, applied to the residual)^T."""
    fused: Any = 0.0
    own_gradients = []
    for layers, rows, part in zip(own, above, parts, strict=True):
        column = residual[:, :, part].swapaxes(1, 2)
        grads = []
        for layer, row in zip(layers, rows, strict=True):
            grads.append(row.swapaxes(1, 2) * column.swapaxes(1, 2))
            column = layer @ column
        own_gradients.append(grads)
        fused = fused + column
    shared_gradients = []
    for layer, row in zip(shared, above_shared, strict=True):
        shared_gradients.append(row.swapaxes(1, 2) * fused.swapaxes(1, 2))
        fused = layer @ fused
    return own_gradients, shared_gradients
