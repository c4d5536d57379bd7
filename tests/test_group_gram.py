import inputs
import numpy as np
import pytest
import torch

import modgrad
from modgrad.ops import group_gram

M = 3


def losses(backend, dtype, device, K):
    """K gradient lists over the awkward tensors; some losses do not reach some parameters."""
    tensors = inputs.tensors(backend, dtype, device)
    return [
        [
            None if (3 * k + p) % 5 == 4 else torch.randn(t.shape, device=device).to(dtype)
            for p, t in enumerate(tensors)
        ]
        for k in range(K)
    ]


def expected(grads_per_loss, group, num_groups=M):
    K = len(grads_per_loss)
    gram = np.zeros((num_groups, K, K))
    for p, g in enumerate(group):
        for k in range(K):
            for j in range(K):
                x, y = grads_per_loss[k][p], grads_per_loss[j][p]
                if x is not None and y is not None:
                    gram[g, k, j] += (inputs.float64(x) * inputs.float64(y)).sum()
    return gram


def check(grads_per_loss, group, backend):
    found = group_gram(grads_per_loss, group, M, backend=backend)
    K = len(grads_per_loss)
    assert found.dtype == torch.float64
    assert found.shape == (M, K, K)
    assert torch.equal(found, found.transpose(1, 2))
    exact = expected(grads_per_loss, group)
    # float64 sums of n <= 1e5 products: n eps64 of the sum of magnitudes, |g_k| |g_j| at most
    norms = np.sqrt(np.einsum("mkk->mk", exact))
    tolerance = 1e-11 * norms[:, :, None] * norms[:, None, :]
    assert (np.abs(found.cpu().numpy() - exact) <= tolerance).all()


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize("K", [1, 2, 3])
def test_inner_products(backend, device, dtype, K):
    grads = losses(backend, dtype, device, K)
    check(grads, inputs.groups(len(grads[0]), M), backend)


def test_many_losses(backend, device):
    grads = [[torch.randn(37, device=device), torch.randn(5, 3, device=device)] for _ in range(9)]
    check(grads, [0, 2], backend)


def test_gradients_in_different_memory_order(backend, device):
    x = torch.randn(2, 3, 4, 4, device=device)
    y = torch.randn(2, 3, 4, 4, device=device).to(memory_format=torch.channels_last)
    check([[x], [y], [torch.randn(4, 4, 3, 2, device=device).permute(3, 2, 0, 1)]], [1], backend)


def test_one_loss_is_the_squared_norm(backend, device):
    grads = inputs.tensors(backend, torch.float32, device)
    group = inputs.groups(len(grads), M)
    norms = modgrad.group_sq_norms(grads, group, M, backend=backend)
    gram = group_gram([grads], group, M, backend=backend)
    torch.testing.assert_close(gram[:, 0, 0], norms, rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [1e20, 1e-25], ids=str)
def test_no_overflow_and_no_underflow(backend, device, size):
    check(
        [[torch.randn(100, device=device) * size], [torch.randn(100, device=device)]], [1], backend
    )


def test_infinities_show_in_their_entries_alone(backend, device):
    grads = [[torch.ones(50, device=device)] for _ in range(2)]
    grads[1][0][33] = float("inf")
    found = group_gram(grads, [0], 1, backend=backend)[0]
    assert found.isfinite().tolist() == [[True, False], [False, False]]


def test_same_bits_on_every_run(backend, device):
    n = 5_000 if backend == "triton" else 5_000_000
    grads = [[torch.randn(n, device=device)] for _ in range(2)]
    first = group_gram(grads, [0], 1, backend=backend)
    assert all(torch.equal(first, group_gram(grads, [0], 1, backend=backend)) for _ in range(3))


@pytest.mark.parametrize(
    ("grads", "group", "error", "match"),
    [
        ([], [], ValueError, "`grads_per_loss` is empty"),
        ([[None]], [0], ValueError, "holds no gradient"),
        (
            [[torch.ones(2)], []],
            [0],
            ValueError,
            r"`grads_per_loss\[1\]` has 0 entries, allowed: 1",
        ),
        ([[torch.ones(2)], [torch.ones(3)]], [0], ValueError, r"`grads_per_loss\[1\]\[0\]` is"),
        (
            [[torch.ones(2)], [torch.ones(2).half()]],
            [0],
            ValueError,
            r"allowed: torch.float32 \[2\]",
        ),
        ([[torch.ones(2)]], [3], ValueError, r"`group\[0\]` is 3, outside \[0, 3\)"),
        ([[torch.ones(2).int()]], [0], TypeError, "dtype torch.int32"),
    ],
)
def test_bad_input(grads, group, error, match):
    with pytest.raises(error, match=match):
        group_gram(grads, group, M)
