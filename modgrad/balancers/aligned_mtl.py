"""Aligned-MTL: make the losses' gradients orthogonal and equally long, then average."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from modgrad.balancers.base import Modulation, NoState, Statistics
from modgrad.balancers.gram import check_several, evenly, taking_part
from modgrad.rules import is_finite, or_plain

CUT = 1e-10  # of the largest eigenvalue: below, a direction is rounding of float32 gradients


@dataclass(frozen=True)
class AlignedMTL:
    """Align the principal components of the gradients: condition number 1.

    In each modality, with the gram G = V diag(lambda) V^T, lambda_min its smallest eigenvalue > 0:

        weights = B mean,   B = sqrt(lambda_min) V diag(lambda^-1/2) V^T

    The combinations sum_j B_kj g_j are orthogonal, and as long as the smallest singular value of
    the gradients. A weight may be negative. Eigenvalues below 1e-10 of the largest count as 0, and
    have no part in B. Losses without a gradient in a modality have weight 0 there, and the mean is
    over the others; where all are without, weights are 1/K; where the gram is not finite, 1.

    Source: Senushkin et al., Independent Component Alignment for Multi-Task Learning, CVPR 2023,
    algorithm 1, with equal preferences. Eigenvectors come from a fixed number of Jacobi
    rotations: on a GPU ``torch.linalg.eigh`` waits for the device.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def init(self, modalities: tuple[str, ...], num_losses: int, device: torch.device) -> NoState:
        check_several(self, num_losses)
        return NoState()

    def update(self, statistics: Statistics, state: NoState) -> tuple[Modulation, NoState]:
        assert statistics.gram is not None
        gram = statistics.gram
        mean = evenly(taking_part(gram))
        B = alignment(torch.where(is_finite(gram)[:, None, None], gram, 0.0))
        weights = torch.where(mean > 0, (B @ mean[..., None]).squeeze(-1), 0.0)
        return Modulation(or_plain(weights, gram)), state


def alignment(gram: Tensor) -> Tensor:
    """B [M, K, K]; the identity for a gram of zeros."""
    values, vectors = eigen(gram)
    largest = values.amax(-1, keepdim=True)
    keep = (values > CUT * largest) | (largest <= 0)
    smallest = torch.where(keep, values, torch.inf).amin(-1, keepdim=True)
    scale = torch.where(largest > 0, (smallest / values).sqrt(), 1.0)
    return vectors * torch.where(keep, scale, 0.0)[:, None] @ vectors.mT


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [M, K], in no order, and eigenvectors [M, K, K] of symmetric [M, K, K]."""
    K = matrix.shape[-1]
    eye = torch.eye(K, dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
    vectors = eye
    for _ in range(K + 3):  # sweeps: K + 2 reached float64 precision, up to K = 10
        for p in range(K):
            for q in range(p + 1, K):
                # The rotation in the plane of p and q that makes matrix[p, q] 0, and
                # matrix[p, p] the smaller: equal eigenvalues apart would slow convergence down.
                difference = matrix[:, q, q] - matrix[:, p, p]
                angle = torch.atan2(2 * matrix[:, p, q], difference) / 2
                rotation = eye.clone()
                rotation[:, p, p] = rotation[:, q, q] = angle.cos()
                rotation[:, p, q] = angle.sin()
                rotation[:, q, p] = -angle.sin()
                matrix = rotation.mT @ matrix @ rotation
                vectors = vectors @ rotation
    return matrix.diagonal(dim1=-2, dim2=-1), vectors
