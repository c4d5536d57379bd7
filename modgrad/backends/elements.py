"""What an element is computed in, and the noise that is added to it: for the reference."""

import torch
from torch import Tensor

from modgrad.backends.philox import normals


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which an element is computed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def with_noise(scaled: Tensor, x: Tensor, amount: Tensor, seed: Tensor, stream: int) -> Tensor:
    """``scaled + amount std(x) z`` [N], z from the stream; ``scaled`` itself where amount is 0."""
    if x.numel() == 0:
        return scaled
    # The n - 1 form; a single element has no spread.
    std = x.double().std() if x.numel() > 1 else x.new_zeros((), dtype=torch.float64)
    added = (amount * std).to(x.dtype) * normals(seed, stream, x.numel()).to(x.dtype)
    return torch.where(amount == 0, scaled, scaled + added)
