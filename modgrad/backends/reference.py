"""Plain PyTorch: the definition of every op. The other backends are compared with it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from modgrad.backends.fake import register
from modgrad.backends.layout import flat
from modgrad.backends.philox import normals


def unusable(device: torch.device) -> str | None:
    return None


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which an element is computed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def group_sq_norms(tensors: Sequence[Tensor], group: Sequence[int], num_groups: int) -> Tensor:
    sums: list[list[Tensor]] = [[] for _ in range(num_groups)]
    for tensor, g in zip(tensors, group, strict=True):
        x = flat(tensor).double()
        sums[g].append(torch.dot(x, x))
    zero = tensors[0].new_zeros((), dtype=torch.float64)
    return torch.stack([torch.stack(s).sum() if s else zero for s in sums])


def modulate_(
    grads: Sequence[Tensor],
    group: Sequence[int],
    weights: Tensor,
    noise: Tensor | None = None,
    seed: Tensor | None = None,
) -> None:
    for index, (grad, g) in enumerate(zip(grads, group, strict=True)):
        x = flat(grad).to(_wide(grad.dtype))
        scaled = x * weights[g].to(x.dtype)
        if noise is not None and seed is not None and x.numel() > 0:
            # The n - 1 form; a single element has no spread.
            std = x.double().std() if x.numel() > 1 else torch.zeros_like(x[0])
            added = (noise[g] * std).to(x.dtype) * normals(seed, index, x.numel()).to(x.dtype)
            scaled = torch.where(noise[g] == 0, scaled, scaled + added)
        flat(grad).copy_(scaled)


def modality_scores(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    index = targets.long()[:, None]
    rows = [x.to(_wide(x.dtype)).softmax(dim=1).gather(1, index) for x in logits]
    return torch.stack([p.double().mean().float() for p in rows])


def scale_backward(grads: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    return [
        (grad.to(_wide(grad.dtype)) * weight.to(_wide(grad.dtype))).to(grad.dtype)
        for grad, weight in zip(grads, weights.unbind(), strict=True)
    ]


register(
    "reference",
    {f.__name__: f for f in (group_sq_norms, modulate_, modality_scores, scale_backward)},
)
