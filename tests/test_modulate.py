import inputs
import numpy as np
import pytest
import torch

import modgrad

M = 4
WEIGHTS = [0.375, 1.0, 0.0, 1.7]


def copies(tensors):
    """Copies that keep strides and alignment: a gradient's memory is part of the input."""
    out = []
    for t in tensors:
        base = torch.empty(
            t.untyped_storage().nbytes() // t.element_size(), dtype=t.dtype, device=t.device
        )
        base.copy_(torch.as_strided(t, base.shape, (1,), 0))
        out.append(torch.as_strided(base, t.shape, t.stride(), t.storage_offset()))
    return out


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_scaling_is_one_rounding_of_the_exact_product(backend, device, dtype):
    grads = inputs.tensors(backend, dtype, device)
    group = inputs.groups(len(grads), M)
    weights = torch.tensor(WEIGHTS, device=device)
    changed = copies(grads)
    modgrad.modulate_(changed, group, weights, backend=backend)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for before, after, g in zip(grads, changed, group, strict=True):
        assert torch.equal(after, (before.to(wide) * weights[g].to(wide)).to(dtype))


def test_memory_between_strided_elements_is_untouched(backend, device):
    whole = torch.randn(6, 8, device=device)
    before = whole.clone()
    modgrad.modulate_([whole[:, ::2]], [0], torch.tensor([2.0], device=device), backend=backend)
    assert torch.equal(whole[:, 1::2], before[:, 1::2])
    assert torch.equal(whole[:, ::2], 2 * before[:, ::2])


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_noise_equals_the_reference(backend, device, dtype):
    grads = inputs.tensors(backend, dtype, device)
    group = inputs.groups(len(grads), M)
    weights = torch.tensor(WEIGHTS, device=device)
    noise = torch.tensor([1.0, 0.0, 0.5, 2.0], device=device)
    seed = torch.tensor(2**62 + 12345, device=device)
    found, expected = copies(grads), copies(grads)
    modgrad.modulate_(found, group, weights, noise, seed, backend=backend)
    modgrad.modulate_(expected, group, weights, noise, seed, backend="reference")
    for a, b, x, g in zip(found, expected, grads, group, strict=True):
        if x.numel() == 0:
            continue
        # log, sqrt and cos differ by a few units in the last place of |z| <= 6.8; then one rounding
        largest = (
            inputs.float64(b).__abs__().max() + 7 * noise[g].item() * x.double().abs().max().item()
        )
        tolerance = 16 * torch.finfo(torch.float32).eps * largest + inputs.EPS[dtype] * largest
        assert np.abs(inputs.float64(a) - inputs.float64(b)).max() <= tolerance


def test_noise_has_the_gradients_spread(backend, device):
    n = 8192 if backend == "triton" else 200_000
    mean, deviation = 30.0, 0.01  # a mean that swamps the spread in float32
    grad = mean + deviation * torch.randn(n, device=device)
    before = grad.double()
    std = before.std().item()
    modgrad.modulate_(
        [grad],
        [0],
        torch.tensor([1.0], device=device),
        torch.tensor([1.0], device=device),
        5,
        backend=backend,
    )
    added = grad.double() - before
    # standard errors: std / sqrt(n) of the mean, std / sqrt(2 n) of the spread; five of each
    assert abs(added.mean().item()) < 5 * std / n**0.5
    assert (
        abs(added.std().item() / std - 1) < 5 / (2 * n) ** 0.5 + 1e-3
    )  # float32 near 30: 2e-6 / 0.01
    correlation = torch.corrcoef(torch.stack([added, before]))[0, 1].item()
    assert abs(correlation) < 5 / n**0.5


def test_noise_is_reproducible_and_differs_between_seeds_and_tensors(backend, device):
    one = torch.tensor([1.0], device=device)

    def noise(seed):
        grads = [torch.arange(100.0, device=device), torch.arange(100.0, device=device)]
        modgrad.modulate_(grads, [0, 0], one, one, seed, backend=backend)
        return grads

    a, b, c = noise(1), noise(1), noise(2)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert not torch.isclose(a[0], a[1]).any()
    assert not torch.isclose(a[0], c[0]).any()


def test_group_without_noise_is_scaled_exactly(backend, device):
    grad = torch.randn(1000, device=device)
    expected = grad * 0.3
    weights, noise = (
        torch.tensor([0.3, 0.3], device=device),
        torch.tensor([0.0, 1.0], device=device),
    )
    modgrad.modulate_([grad], [0], weights, noise, 3, backend=backend)
    assert torch.equal(grad, expected)


def test_weights_and_noise_may_be_columns(backend, device):
    grads = [torch.ones(3, device=device), torch.ones(2, device=device)]
    columns = torch.tensor([[0.5, 9.0], [2.0, 9.0]], device=device)
    modgrad.modulate_(grads, [0, 1], columns[:, 0], columns[:, 0], 1, backend=backend)
    assert [g.unique().tolist() for g in grads] == [[0.5], [2.0]]  # constants have no spread


def test_single_element_has_no_spread(backend, device):
    grad = torch.tensor([3.0], device=device)
    one = torch.tensor([1.0], device=device)
    modgrad.modulate_([grad], [0], one, one, 3, backend=backend)
    assert grad.item() == 3


def test_the_version_counter_moves(backend, device):
    grad = torch.ones(3, device=device)
    version = grad._version
    modgrad.modulate_([grad], [0], torch.tensor([2.0], device=device), backend=backend)
    assert grad._version > version


def test_a_failure_after_the_op_does_not_run_it_twice(backend, device, monkeypatch):
    def fail(_):
        raise RuntimeError("after the op")

    monkeypatch.setattr(torch.autograd.graph, "increment_version", fail)
    grad = torch.ones(3, device=device)
    with pytest.raises(RuntimeError, match="after the op"):
        modgrad.modulate_([grad], [0], torch.tensor([2.0], device=device), backend=backend)
    assert grad.unique().tolist() == [2]


ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (([torch.ones(2)], [0], torch.ones(1, 1)), ValueError, r"`weights` has shape \[1, 1\]"),
        (([torch.ones(2)], [0], torch.ones(1).long()), TypeError, "`weights` has dtype"),
        (([torch.ones(2)], [1], ONE), ValueError, r"`group\[1\]` is 1, outside \[0, 1\)"),
        (([torch.ones(2)], [0], torch.ones(1, device="meta")), ValueError, "`weights` is on meta"),
        (([torch.ones(2)], [0], ONE, ONE), ValueError, "`seed` is None"),
        (([torch.ones(2)], [0], ONE, None, 3), ValueError, "`seed` is given without `noise`"),
        (([torch.ones(2)], [0], ONE, torch.ones(2), 3), ValueError, "`noise` has shape"),
        (([torch.ones(2)], [0], ONE, ONE, torch.ones(1)), ValueError, "`seed` is torch.float32"),
        (([torch.ones(2).int()], [0], ONE), TypeError, r"`grads\[1\]` has dtype torch.int32"),
        (([torch.eye(2).to_sparse()], [0], ONE), ValueError, r"`grads\[1\]` has layout"),
    ],
)
def test_bad_input_changes_nothing(arguments, error, match):
    good = torch.ones(2)
    grads, group, *rest = arguments
    with pytest.raises(error, match=match):
        modgrad.modulate_([good, *grads], [0, *group], *[r * 2 if r is ONE else r for r in rest])
    assert torch.equal(good, torch.ones(2))
