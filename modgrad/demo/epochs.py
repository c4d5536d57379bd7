"""What some methods do before an epoch, beside its steps."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import modgrad
from modgrad.demo.data import Batch, Split
from modgrad.demo.steps import unimodal_losses

HELD_OUT = 5  # every fifth sample of the training split


class _Loader:
    """Batches in an order that torch's own random numbers draw, so that it can be drawn again."""

    def __init__(self, split: Split, batch_size: int) -> None:
        self.split, self.batch_size = split, batch_size

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ()).item()))
        return self.split.batches(self.batch_size, generator)


def refresh_prototypes(
    network: Any,
    optimizer: modgrad.ModulatedOptimizer,
    train: Split,
    epoch: int,
    total: int,
    batch_size: int,
) -> None:
    """The class means of the features, in evaluation, over the whole training split."""
    network.eval()
    with torch.no_grad():
        network.prototypes.accumulate(network.features(train.inputs), train.targets)
    network.prototypes.refresh()


def estimate_blend(
    network: Any,
    optimizer: modgrad.ModulatedOptimizer,
    train: Split,
    epoch: int,
    total: int,
    batch_size: int,
) -> None:
    """Before the first epoch: the weights, from each loss trained alone for the whole run."""
    if epoch > 0:
        return

    def losses(network: Any, batch: Batch) -> dict[str, Tensor]:
        return unimodal_losses(network, *batch)

    is_held_out = torch.arange(len(train), device=train.targets.device) % HELD_OUT == 0
    kept, held_out = (Split(*train[rows]) for rows in (~is_held_out, is_held_out))
    network.train()
    modgrad.BlendEstimator(
        network,
        optimizer,
        losses,
        _Loader(kept, batch_size),
        _Loader(held_out, batch_size),
        epochs=total,
        progress=False,
    ).estimate()
