"""The gram of each parameter tensor, and the modalities' that are added up from it."""

import math

import numpy as np
import pytest
import torch

from modgrad.balancers import Statistics
from modgrad.meter import Meter

AT = torch.tensor(0)
NAMES = frozenset({"gram", "tensor_gram"})


def measure(names, parameters, grads, group, M, backend):
    known = Statistics(AT, AT)
    return Meter(names, M, backend).of_losses(known, parameters, grads, group)


def made(P, K, M, device, dtype=torch.float32):
    """P tensors of other shapes, gradients of K losses, some of which do not reach some tensors."""
    shapes = [((3, 5), (7,), (1,), (2, 2, 3))[p % 4] for p in range(P)]
    parameters = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
    grads = [
        [torch.randn_like(t) if (k + p) % 5 else None for p, t in enumerate(parameters)]
        for k in range(K)
    ]
    return parameters, grads, [(7 * p + 3) % M for p in range(P)]


def exact(grads, p):
    """float64 [K, K]"""
    rows = [each[p] for each in grads]
    size = max(r.numel() for r in rows if r is not None)
    flat = np.stack(
        [np.zeros(size) if r is None else r.double().cpu().numpy().reshape(-1) for r in rows]
    )
    return flat @ flat.T, np.outer(np.linalg.norm(flat, axis=1), np.linalg.norm(flat, axis=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_hundreds_of_tensors(backend, device, dtype):
    P, K, M = 24 if backend == "triton" else 300, 3, 4
    parameters, grads, group = made(P, K, M, device, dtype)
    found = measure(NAMES, parameters, grads, group, M, backend)
    assert found.tensor_group.tolist() == group
    total, size = np.zeros((M, K, K)), np.zeros((M, K, K))
    # products of at most 15 entries are exact in float64 from float32 and shorter, and rounded
    # once from float64; then one rounding for each addition
    eps = 2.0**-53
    for p, m in enumerate(group):
        gram, lengths = exact(grads, p)
        assert (np.abs(found.tensor_gram[p].cpu().numpy() - gram) <= 2 * 15 * eps * lengths).all()
        total[m] += gram
        size[m] += lengths
    assert (np.abs(found.gram.cpu().numpy() - total) <= 2 * (15 + P) * eps * size).all()
    torch.testing.assert_close(found.grad_sq_norms, found.gram.sum((1, 2)), rtol=0, atol=0)


def test_is_the_gram_of_the_modalities(backend, device):
    parameters, grads, group = made(20, 3, 2, device)
    each = measure(NAMES, parameters, grads, group, 2, backend)
    whole = measure(frozenset({"gram"}), parameters, grads, group, 2, backend)
    assert whole.tensor_gram is None
    assert whole.tensor_group is None
    torch.testing.assert_close(each.gram, whole.gram, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_where_it_is(backend, device, bad):
    parameters, grads, group = made(12, 2, 3, device)
    clean = measure(NAMES, parameters, grads, group, 3, backend)
    grads[0][1].view(-1)[0] = bad
    found = measure(NAMES, parameters, grads, group, 3, backend)
    own = group[1]
    assert not found.tensor_gram[1].isfinite().all()
    assert not found.gram[own].isfinite().all()
    others = [m for m in range(3) if m != own]
    assert torch.equal(found.gram[others], clean.gram[others])
    rest = [p for p in range(12) if p != 1]
    assert torch.equal(found.tensor_gram[rest], clean.tensor_gram[rest])


def test_a_modality_without_tensors_has_a_gram_of_zero(backend, device):
    parameters, grads, _ = made(5, 2, 1, device)
    found = measure(NAMES, parameters, grads, [0, 2, 0, 2, 2], 3, backend)
    assert found.gram[1].abs().max() == 0
    assert (found.gram[[0, 2]].diagonal(dim1=1, dim2=2) > 0).all()


def test_the_same_bits_on_every_run(backend, device):
    parameters, grads, group = made(40, 2, 3, device)
    first = measure(NAMES, parameters, grads, group, 3, backend)
    again = measure(NAMES, parameters, grads, group, 3, backend)
    assert torch.equal(first.gram, again.gram)
    assert torch.equal(first.tensor_gram, again.tensor_gram)
