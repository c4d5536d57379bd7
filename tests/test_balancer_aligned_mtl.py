"""Aligned-MTL against the singular value decomposition of the gradients."""

import numpy as np
import pytest
import torch
from gradients import combine, draws, gram, lengths, rounding, weigh

from modgrad.balancers import AlignedMTL
from modgrad.balancers.aligned_mtl import alignment, eigen

EPS64 = 2.0**-53


def unit(K, seed=0, **shape):
    gradients = draws(K, seed, **shape)
    return gradients / lengths(gradients)[..., None]


@pytest.mark.parametrize("K", [2, 3, 5, 8])
def test_formula(K):
    gradients = unit(K)
    weights = weigh(AlignedMTL(), gradients)
    found, bound = combine(weights, gradients), rounding(weights, gradients)
    for m, g in enumerate(gradients):
        U, sigma, V = np.linalg.svd(g, full_matrices=False)
        expected = (sigma[-1] * U @ V).mean(0)
        condition = (sigma[0] / sigma[-1]) ** 2
        # relative to lambda_min an eigenvalue is off by its condition; 6 K^2 rotations' rounding
        assert np.linalg.norm(found[m] - expected) <= bound[m] + 6 * K**2 * EPS64 * condition


@pytest.mark.parametrize("K", [2, 3, 6])
def test_all_singular_values_are_the_smallest(K):
    gradients = unit(K)
    aligned = alignment(gram(gradients)).numpy() @ gradients
    for before, after in zip(gradients, aligned, strict=True):
        sigma = np.linalg.svd(before, compute_uv=False)
        condition = (sigma[0] / sigma[-1]) ** 2
        np.testing.assert_allclose(
            np.linalg.svd(after, compute_uv=False),
            sigma[-1],
            rtol=6 * K**2 * EPS64 * condition,
        )


def test_dependent_gradients_are_aligned_in_their_span():
    gradients = unit(3)
    gradients[:, 2] = gradients[:, 0] + gradients[:, 1]
    aligned = alignment(gram(gradients)).numpy() @ gradients
    for before, after in zip(gradients, aligned, strict=True):
        sigma = np.linalg.svd(before, compute_uv=False)
        np.testing.assert_allclose(
            np.linalg.svd(after, compute_uv=False), [sigma[1], sigma[1], 0], atol=1e-7
        )


@pytest.mark.parametrize("kind", ["random", "ill-conditioned", "double", "diagonal"])
@pytest.mark.parametrize("K", [1, 2, 3, 5, 10])
def test_eigen(K, kind):
    matrix = gram(draws(K) if kind == "ill-conditioned" else unit(K))
    if kind == "double":  # two distinct eigenvalues only
        Q = torch.linalg.qr(matrix).Q
        matrix = Q * torch.tensor([1.0, 2.0]).repeat(K)[:K].double() @ Q.mT
        matrix = (matrix + matrix.mT) / 2
    elif kind == "diagonal":
        matrix = torch.diag_embed(matrix.diagonal(dim1=1, dim2=2))
    values, vectors = eigen(matrix)
    largest = values.abs().amax(1)
    # rounding of 6 sweeps of K (K - 1) / 2 rotations, each of K terms
    atol = 6 * K**2 * EPS64 * largest * 4
    off = (vectors * values[:, None] @ vectors.mT - matrix).abs().amax((1, 2))
    assert (off <= atol).all()
    eye = torch.eye(K, dtype=torch.float64)
    assert ((vectors @ vectors.mT - eye).abs().amax((1, 2)) <= atol / largest).all()
    expected = torch.linalg.eigvalsh(matrix)
    assert ((values.sort().values - expected).abs().amax(1) <= K * atol).all()
