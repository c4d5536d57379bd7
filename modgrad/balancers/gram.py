"""What the balancers that read the gram share. Shape letters: M modalities, K losses."""

import torch
from torch import Tensor


def check_several(balancer: object, num_losses: int, most: int | None = None) -> None:
    """Raise ValueError unless there are losses to compare, and at most ``most``."""
    if num_losses < 2 or (most is not None and num_losses > most):
        allowed = "at least 2" if most is None else f"2 to {most}"
        name = type(balancer).__name__
        raise ValueError(f"{name} compares losses: `losses` names {num_losses}, allowed: {allowed}")


def taking_part(gram: Tensor) -> Tensor:
    """bool [M, K]: the losses with a gradient in modality m; all of them where none has one.

    The loss of one modality has no gradient in the encoder of another: a zero row of the gram. To
    a method that looks for the shortest combination, a zero gradient would be the answer.
    """
    present = gram.diagonal(dim1=-2, dim2=-1) > 0
    return present | ~present.any(-1, keepdim=True)


def evenly(part: Tensor) -> Tensor:
    """float64 [M, K]: equal weights of sum 1 over the losses that take part."""
    return part / part.sum(-1, keepdim=True, dtype=torch.float64)
