import inputs
import numpy as np
import pytest
import torch

import modgrad

M = 4


def expected(tensors, group, num_groups=M):
    sums = np.zeros(num_groups)
    for tensor, g in zip(tensors, group, strict=True):
        sums[g] += (inputs.float64(tensor) ** 2).sum()
    return sums


def check(tensors, group, backend):
    found = modgrad.group_sq_norms(tensors, group, M, backend=backend)
    assert found.dtype == torch.float64
    assert found.shape == (M,)
    assert found.device == tensors[0].device
    # float64 sums of n <= 1e5 exact squares: n eps64 at worst, and numpy's own error beside it
    np.testing.assert_allclose(found.cpu().numpy(), expected(tensors, group), rtol=1e-11, atol=0)


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_sums_of_squares(backend, device, dtype):
    tensors = inputs.tensors(backend, dtype, device)
    check(tensors, inputs.groups(len(tensors), M), backend)


def test_mixed_dtypes_in_one_call(backend, device):
    tensors = [t for dtype in inputs.DTYPES for t in inputs.tensors("triton", dtype, device)[:6]]
    check(tensors, inputs.groups(len(tensors), M), backend)


def test_many_tensors(backend, device):
    tensors = [torch.randn(1 + i % 5, device=device) for i in range(1300)]
    check(tensors, inputs.groups(len(tensors), M), backend)


@pytest.mark.parametrize("size", [1e20, 1e-25, 1e-38], ids=str)
def test_no_overflow_and_no_underflow(backend, device, size):
    tensors = [torch.randn(100, device=device) * size]
    check(tensors, [1], backend)


def test_group_without_tensors_is_zero(backend, device):
    found = modgrad.group_sq_norms([torch.ones(4, device=device)], [2], 4, backend=backend)
    assert found.tolist() == [0, 0, 4, 0]


@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize("position", [0, 1, 16383, 16399], ids=str)
def test_non_finite_values_show_in_their_group_alone(backend, device, value, position):
    tensors = [torch.randn(16400, device=device), torch.randn(5, device=device)]
    tensors[0][position] = value
    found = modgrad.group_sq_norms(tensors, [0, 1], 2, backend=backend)
    assert found.isfinite().tolist() == [False, True]


def test_same_bits_on_every_run_and_for_every_number_of_threads(backend, device):
    big = 1_000 if backend == "triton" else 9_000_000  # enough work for several threads
    tensors = [torch.randn(n, device=device) for n in (big, 3, big + 1)]
    threads = torch.get_num_threads()
    # the reference is torch's own sum, which depends on the number of threads
    counts = [threads] * 3 if backend == "reference" else [1, 2, 3]
    first = modgrad.group_sq_norms(tensors, [0, 0, 1], 2, backend=backend)
    try:
        for count in counts:
            torch.set_num_threads(count)
            again = modgrad.group_sq_norms(tensors, [0, 0, 1], 2, backend=backend)
            assert torch.equal(first, again)
    finally:
        torch.set_num_threads(threads)


def test_parameters_that_require_gradients(backend, device):
    parameter = torch.nn.Parameter(torch.ones(4, device=device))
    found = modgrad.group_sq_norms([parameter], [0], 1, backend=backend)
    assert found.item() == 4
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("tensors", "group", "num_groups", "error", "match"),
    [
        ([], [], 1, ValueError, "`tensors` is empty"),
        ([torch.ones(2)], [0, 1], 2, ValueError, "`group` has 2 entries, allowed: 1"),
        ([torch.ones(2)] * 2, [0, 5], 2, ValueError, r"`group\[1\]` is 5, outside \[0, 2\)"),
        ([torch.ones(2)], [-1], 2, ValueError, r"`group\[0\]` is -1"),
        ([torch.ones(2)], [0], 0, ValueError, "`num_groups` is 0"),
        ([torch.ones(2).long()], [0], 1, TypeError, r"`tensors\[0\]` has dtype torch.int64"),
        ([torch.ones(2).to_sparse()], [0], 1, ValueError, "layout torch.sparse_coo"),
        (["x"], [0], 1, TypeError, r"`tensors\[0\]` is str"),
        ([torch.ones(2), torch.ones(2, device="meta")], [0, 0], 1, ValueError, "is on meta"),
    ],
)
def test_bad_input(tensors, group, num_groups, error, match):
    with pytest.raises(error, match=match):
        modgrad.group_sq_norms(tensors, group, num_groups)
