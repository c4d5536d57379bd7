"""balance_: measured, decided and applied in one op, as its three parts do."""

import inputs
import pytest
import torch

import modgrad
from modgrad import rules
from modgrad.balancers import EqualNorms, GradNorm, MMPareto, PCGrad

M = 2


def poison(tensors):
    return [torch.full_like(t, float("nan")) for t in tensors]


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_one_loss_in_place(backend, device, dtype):
    grads = inputs.tensors(backend, dtype, device)
    group = inputs.groups(len(grads), M)
    before = [g.clone() for g in grads]
    squares = [(inputs.float64(g) ** 2).sum() for g in before]
    exact = [sum(s for s, m in zip(squares, group, strict=True) if m == n) for n in range(M)]
    gram, weights, state = modgrad.balance_(grads, group, M, EqualNorms().rule, backend=backend)
    assert state == ()
    # float64 sums of at most 1e5 squares
    torch.testing.assert_close(gram[:, 0, 0].cpu(), torch.tensor(exact), rtol=1e-11, atol=0)
    # the rule in float64, rounded once: an ulp of float32
    expected, _ = rules.weights(EqualNorms().rule, gram)
    torch.testing.assert_close(weights, expected, rtol=2**-23, atol=0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for grad, old, m in zip(grads, before, group, strict=True):
        torch.testing.assert_close(grad, (old.to(wide) * weights[m, 0]).to(dtype), rtol=0, atol=0)


def several(backend, dtype, device, K):
    tensors = inputs.tensors(backend, dtype, device)
    grads = [
        [
            None if (3 * k + p) % 5 == 4 else torch.randn(t.shape, device=device).to(dtype)
            for p, t in enumerate(tensors)
        ]
        for k in range(K)
    ]
    return tensors, grads, inputs.groups(len(tensors), M)


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize(
    "balancer", [MMPareto(), PCGrad(), GradNorm()], ids=lambda b: type(b).__name__
)
def test_several_losses_as_the_three_parts(backend, device, dtype, balancer):
    out, grads, group = several(backend, dtype, device, K=3)
    losses = torch.rand(3, device=device) + 0.1
    state = [torch.ones(3, device=device), torch.rand(3, device=device)]
    if not rules.check(balancer.rule).num_states:
        losses, state = None, []
    found = poison(out)
    gram, weights, new = modgrad.balance_(
        grads, group, M, balancer.rule, losses, state, out=found, backend=backend
    )
    exact = modgrad.group_gram(grads, group, M, backend="reference")
    # float64 sums of at most 1e5 products, each at most the size of the norms
    scale = exact.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    assert ((gram - exact).abs() <= 1e-11 * scale).all()
    torch.testing.assert_close(gram, gram.transpose(1, 2), rtol=0, atol=0)
    # the rule in float64, rounded once: an ulp of float32
    expected, expected_new = rules.weights(balancer.rule, gram, losses, tuple(state))
    torch.testing.assert_close(weights, expected, rtol=2**-23, atol=1e-30)
    for a, b in zip(new, expected_new, strict=True):
        torch.testing.assert_close(a, b, rtol=2**-23, atol=0)
    combined = poison(out)
    modgrad.combine_(combined, grads, group, weights, backend="reference")
    for a, b in zip(found, combined, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=False)


@pytest.mark.parametrize("size", [1e20, 1e-25], ids=str)
def test_no_overflow_and_no_underflow(backend, device, size):
    grads = [torch.randn(100, device=device), size * torch.randn(300, device=device)]
    rule = EqualNorms(cap=1e30).rule
    modgrad.balance_(grads, [0, 1], 2, rule, backend=backend)
    norms = [g.double().norm() for g in grads]
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_gradients_that_are_not_finite_are_left_alone(backend, device, bad):
    grads = [torch.randn(50, device=device), torch.randn(20000, device=device)]
    grads[1][17777] = bad
    before = [g.clone() for g in grads]
    gram, weights, _ = modgrad.balance_(grads, [0, 1], 2, EqualNorms().rule, backend=backend)
    assert not gram[1].isfinite()
    assert weights.tolist() == [[1.0], [1.0]]
    torch.testing.assert_close(grads, before, rtol=0, atol=0, equal_nan=True)


def test_same_bits_on_every_run(backend, device):
    n = 5_000 if backend == "triton" else 2_000_000
    given = [torch.randn(n, device=device), torch.randn(n // 2 + 1, device=device)]
    runs = []
    for _ in range(3):
        grads = [g.clone() for g in given]
        modgrad.balance_(grads, [0, 1], 2, EqualNorms().rule, backend=backend)
        runs.append(grads)
    assert all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("count", [70, 1000])
def test_many_small_tensors(backend, device, count):
    if backend == "triton":
        count = min(count, 70)
    grads = [torch.randn(1 + i % 7, device=device) for i in range(count)]
    group = inputs.groups(count, M)
    before = [g.clone() for g in grads]
    _, weights, _ = modgrad.balance_(grads, group, M, EqualNorms().rule, backend=backend)
    assert (weights != 1).all()
    for grad, old, m in zip(grads, before, group, strict=True):
        torch.testing.assert_close(grad, old * weights[m, 0], rtol=0, atol=0)


def test_a_group_without_tensors(backend, device):
    grads = [torch.randn(9, device=device)]
    gram, weights, _ = modgrad.balance_(grads, [1], 3, EqualNorms().rule, backend=backend)
    assert gram.flatten().tolist()[::2] == [0.0, 0.0]
    assert weights.flatten().tolist() == [1.0, 1.0, 1.0]


def test_autograd_is_told(backend, device):
    x = torch.randn(3, device=device)
    version = x._version
    modgrad.balance_([x], [0], 1, EqualNorms().rule, backend=backend)
    assert x._version > version


ONE = [[torch.ones(2)], [torch.ones(2)]]


@pytest.mark.parametrize(
    ("grads", "group", "rule", "more", "error", "match"),
    [
        ([], [], EqualNorms().rule, {}, ValueError, "`grads` is empty"),
        ([torch.ones(2).int()], [0], EqualNorms().rule, {}, TypeError, "dtype torch.int32"),
        ([torch.ones(2)], [5], EqualNorms().rule, {}, ValueError, r"`group\[0\]` is 5"),
        ([torch.ones(2)], [0], modgrad.OGM().rule, {}, ValueError, "reads scores, given are gram"),
        ([torch.ones(2)], [0], MMPareto().rule, {}, ValueError, "has 1 losses, allowed: 3"),
        (ONE, [0], PCGrad().rule, {"out": [torch.ones(3)]}, ValueError, r"allowed: .* \[3\]"),
        (ONE, [0, 1], PCGrad().rule, {"out": [torch.ones(2)] * 2}, ValueError, "has 2 tensors"),
    ],
)
def test_bad_input_changes_nothing(grads, group, rule, more, error, match):
    with pytest.raises(error, match=match):
        modgrad.balance_(grads, group, M, rule, **more)
    for tensor in [*grads, *more.get("out", [])]:
        assert not isinstance(tensor, torch.Tensor) or (tensor == 1).all()
