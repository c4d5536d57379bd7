import inputs
import numpy as np
import pytest
import torch
from test_group_gram import losses

from modgrad.ops import combine_

M = 3


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize("K", [1, 2, 5])
def test_weighted_sums(backend, device, dtype, K):
    out = inputs.tensors(backend, dtype, device)
    grads = losses(backend, dtype, device, K)
    group = inputs.groups(len(out), M)
    weights = torch.randn(M, K, device=device)
    combine_(out, grads, group, weights, backend=backend)
    for p, (found, g) in enumerate(zip(out, group, strict=True)):
        terms = [
            weights[g, k].double().item() * inputs.float64(grads[k][p])
            for k in range(K)
            if grads[k][p] is not None
        ]
        exact = sum(terms, np.zeros(found.shape))
        size = sum((np.abs(t) for t in terms), np.zeros(found.shape))
        # float32 weights; K products and sums rounded in float32, then once in the dtype
        eps = inputs.EPS[torch.float64 if dtype == torch.float64 else torch.float32]
        tolerance = (K + 1) * eps * size + inputs.EPS[dtype] * (np.abs(exact) + 1e-30)
        assert (
            np.abs(inputs.float64(found) - exact) <= tolerance + 1e-7 * (dtype == torch.float16)
        ).all()


def test_equals_the_reference_bit_for_bit_with_one_loss(backend, device):
    out = [torch.randn(1000, device=device), torch.randn(3, 5, device=device)]
    grads = [[torch.randn(1000, device=device), torch.randn(3, 5, device=device)]]
    weights = torch.tensor([[0.3], [1.7]], device=device)
    combine_(out, grads, [1, 0], weights, backend=backend)
    assert torch.equal(out[0], grads[0][0] * weights[1])
    assert torch.equal(out[1], grads[0][1] * weights[0])


def test_what_no_loss_reaches_is_zero_and_gaps_stay(backend, device):
    whole = torch.randn(4, 6, device=device)
    before = whole.clone()
    out = [torch.full((7,), float("nan"), device=device), whole[:, ::2]]
    grads = [[None, torch.ones(4, 3, device=device)], [None, None]]
    combine_(out, grads, [0, 0], torch.tensor([[2.0, 9.0]], device=device), backend=backend)
    assert out[0].abs().max() == 0
    assert torch.equal(whole[:, ::2], torch.full((4, 3), 2.0, device=device))
    assert torch.equal(whole[:, 1::2], before[:, 1::2])


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (torch.ones(1, 3), r"`weights` is \[1, 3\] on cpu, allowed: \[M, 2\] on cpu"),
        (torch.ones(2), r"`weights` is \[2\]"),
        (torch.ones(1, 2, device="meta"), "on meta, allowed"),
    ],
)
def test_bad_weights_change_nothing(weights, match):
    out = [torch.zeros(2)]
    grads = [[torch.ones(2)], [torch.ones(2)]]
    with pytest.raises(ValueError, match=match):
        combine_(out, grads, [0], weights)
    assert out[0].abs().max() == 0
    with pytest.raises(ValueError, match=r"allowed: torch.float32 \[2\]"):
        combine_(out, [[torch.ones(3)]], [0], torch.ones(1, 1))
