"""Small convex programs over the losses: no loop, one candidate a face, the best one wins.

A minimiser lies inside one face of the simplex (or of the orthant), where it solves linear
equations. With K losses there are 2^K faces: for the handful of losses of a multimodal model it is
cheaper to solve them all at once than to iterate, and the answer is exact. Every candidate is
made feasible before it is compared, so that a face without a minimiser does no harm.

Shape letters: M modalities, K losses, F = 2^K faces.
"""

import torch
from torch import Tensor

from modgrad.balancers.gram import evenly
from modgrad.rules import is_finite

MAX_LOSSES = 10  # 1024 systems of 10 x 10: 0.8 MB a modality
RIDGE = 1e-12  # of each |g_k|^2: picks one of many minimisers, costs 1e-6 of a gradient at most


def normalised(gram: Tensor, part: Tensor) -> Tensor:
    """float64 [M, K, K]: the gram over its mean diagonal; the identity where it is not finite."""
    scale = (gram.diagonal(dim1=-2, dim2=-1).sum(-1) / part.sum(-1))[:, None, None]
    scaled = gram / torch.where(scale > 0, scale, 1.0)
    return torch.where(is_finite(scaled)[:, None, None], scaled, _eye(gram))


def definite(gram: Tensor) -> Tensor:
    """The gram, its diagonal a little longer, so that it has an inverse on every face."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    return gram + RIDGE * torch.diag_embed(torch.where(diagonal > 0, diagonal, 1.0))


def _eye(gram: Tensor) -> Tensor:
    return torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


def face_inverses(gram: Tensor, part: Tensor) -> Tensor:
    """float64 [M, F, K, K]: the inverse of the gram on each face, 0 outside the face.

    Args:
        gram: float64 [M, K, K], positive definite.
        part: bool [M, K]; faces are cut down to these losses.
    """
    K = gram.shape[-1]
    # by way of the cosines: gradients may differ in length by orders of magnitude
    inverse_norms = gram.diagonal(dim1=-2, dim2=-1).rsqrt()
    scale = inverse_norms[:, :, None] * inverse_norms[:, None, :]
    bits = torch.arange(K, device=gram.device)
    faces = torch.arange(2**K, device=gram.device)[:, None] >> bits & 1  # [F, K]
    face = faces.bool() & part[:, None]  # [M, F, K]
    inside = face[..., :, None] & face[..., None, :]
    system = torch.where(inside, (gram * scale)[:, None], torch.diag_embed((~face).to(gram)))
    # inv_ex, unlike inv, does not wait for the device to learn whether it succeeded
    return torch.where(inside, torch.linalg.inv_ex(system).inverse * scale[:, None], 0.0)


def onto_simplex(x: Tensor, part: Tensor) -> Tensor:
    """[M, F, K]: candidates cut at 0 and scaled to sum 1; equal weights where nothing is left."""
    x = x.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
    total = x.sum(-1, keepdim=True)
    return torch.where(total > 0, x / torch.where(total > 0, total, 1.0), evenly(part)[:, None])


def best(candidates: Tensor, values: Tensor) -> Tensor:
    """The candidate [..., K] of the smallest value, from [..., F, K] and [..., F]."""
    index = values.argmin(-1)[..., None, None].expand(*values.shape[:-1], 1, candidates.shape[-1])
    return candidates.gather(-2, index).squeeze(-2)


def sq_norms(x: Tensor, gram: Tensor) -> Tensor:
    """[M, F]: ``x^T G x`` of the candidates [M, F, K]."""
    return (x @ gram * x).sum(-1)
