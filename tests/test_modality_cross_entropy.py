"""Cross entropies, scores and gradients of all modalities, by float64 numpy; and bad input."""

from dataclasses import dataclass

import inputs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import usable
from dispatched import Ops

import modgrad

IGNORED = -100
INF = float("inf")


@dataclass
class Problem:
    """Targets of B samples and C classes, and the options that go with them."""

    targets: torch.Tensor
    options: dict


KINDS = {
    "classes": (),
    "ignored": ("ignored",),
    "weighted": ("weighted",),
    "smoothed": ("smoothed",),
    "classes, all": ("ignored", "weighted", "smoothed"),
    "probabilities": ("soft",),
    "probabilities, all": ("soft", "weighted", "smoothed"),
}


def problem(kind, B, C, device, dtype=torch.float32):
    parts, options = KINDS[kind], {}
    targets = torch.randint(0, C, (B,), device=device)
    if "soft" in parts:
        targets = torch.rand(B, C, device=device, dtype=dtype).square()
        targets /= targets.sum(1, keepdim=True)
    if "ignored" in parts and B > 1:
        targets[::3] = IGNORED
    if "weighted" in parts:
        options["class_weights"] = torch.rand(C, device=device, dtype=dtype) + 0.25
    if "smoothed" in parts:
        options["label_smoothing"] = 0.1
    return Problem(targets, options)


def expected(logits, problem):
    """Losses, scores, and each loss's gradient in its logits, by float64 numpy; and the masses."""
    targets, s = problem.targets.cpu().numpy(), problem.options.get("label_smoothing", 0.0)
    losses, scores, grads, masses = [], [], [], []
    for x in map(inputs.float64, logits):
        B, C = x.shape
        w = np.ones(C)
        if "class_weights" in problem.options:
            w = inputs.float64(problem.options["class_weights"])
        kept = np.ones(B, bool) if targets.ndim == 2 else targets != IGNORED
        t = targets[:, None] == np.arange(C) if targets.ndim == 1 else targets
        t = t.astype(float)
        total = B if targets.ndim == 2 else (t @ w)[kept].sum()
        q = w * ((1 - s) * t + s / C) * kept[:, None]
        log_p = x - x.max(1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
        losses.append(-(q * log_p).sum() / total)
        scores.append((t * np.exp(log_p)).sum(1)[kept].mean())
        grads.append((q.sum(1, keepdims=True) * np.exp(log_p) - q) / total)
        masses.append(q.sum(1).max() / total)
    return np.array(losses), np.array(scores), grads, masses


def of_torch(x, problem):
    options = dict(problem.options)
    weight = options.pop("class_weights", None)
    weight = None if weight is None else weight.to(x.dtype)
    targets = problem.targets
    targets = targets.to(x.dtype) if targets.is_floating_point() else targets
    return F.cross_entropy(x, targets, weight=weight, **options)


def units(C, dtype):
    """A sum of C exponentials of the computing dtype: sqrt(C) roundings and a few more."""
    return (12 + C**0.5) * inputs.EPS[torch.float64 if dtype == torch.float64 else torch.float32]


def check(logits, problem, found, grads, weights, computed=None):
    losses, scores, expected_grads, masses = expected(logits, problem)
    C, dtype = logits[0].shape[1], computed or logits[0].dtype
    tolerance = units(C, dtype) * (1 + np.abs(losses))
    assert (np.abs(inputs.float64(found.losses) - losses) <= tolerance).all()
    assert found.scores.dtype == torch.float32
    np.testing.assert_allclose(inputs.float64(found.scores), scores, rtol=units(C, torch.float32))
    for x, grad, e, mass, w in zip(logits, grads, expected_grads, masses, weights, strict=True):
        assert grad.dtype == x.dtype
        assert grad.shape == x.shape
        e = w * e
        eps = inputs.EPS[x.dtype]
        # the softmax, then one rounding, which for float16 may be that of a subnormal
        bound = units(C, dtype) * w * mass + eps * (np.abs(e) + torch.finfo(x.dtype).tiny)
        assert (np.abs(inputs.float64(grad) - e) <= bound).all()


SHAPES = [(1, 2), (2, 3), (33, 10), (33, 2), (2, 257), (3, 1000), (1, 100_000)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("B", "C"), SHAPES)
def test_losses_scores_and_gradients(backend, device, B, C, kind):
    if backend == "triton" and B * C > 5000 and kind not in ("classes", "probabilities, all"):
        pytest.skip("the interpreter takes a second")
    x = [(3 * torch.randn(B, C, device=device)).requires_grad_() for _ in range(3)]
    given = problem(kind, B, C, device)
    weights = torch.tensor([0.5, 1.0, 3.0], device=device)
    found = modgrad.modality_cross_entropy(
        x, given.targets, weights, **given.options, backend=backend
    )
    found.losses.sum().backward()
    check(x, given, found, [v.grad for v in x], weights.tolist())
    assert found.losses.dtype == torch.float32
    assert not found.scores.requires_grad


@pytest.mark.parametrize("kind", ["classes", "classes, all", "probabilities, all"])
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_dtypes(backend, device, dtype, kind):
    x = [(3 * torch.randn(5, 37, device=device)).to(dtype).requires_grad_() for _ in range(2)]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    given = problem(kind, 5, 37, device, wide)
    found = modgrad.modality_cross_entropy(x, given.targets, **given.options, backend=backend)
    found.losses.sum().backward()
    assert found.losses.dtype == wide
    check(x, given, found, [v.grad for v in x], [1.0, 1.0])


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_means_what_torch_means(kind):
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    given = problem(kind, 7, 5, "cpu", torch.float64)
    losses, _, grads, _ = expected([x], given)
    loss = of_torch(x, given)
    loss.backward()
    np.testing.assert_allclose(loss.item(), losses[0], rtol=1e-13)
    np.testing.assert_allclose(x.grad.numpy(), grads[0], rtol=1e-12, atol=1e-15)


def test_different_widths_and_dtypes(backend, device):
    dtypes = [torch.float32, torch.float16, torch.float64]
    x = [
        torch.randn(6, C, device=device).to(d).requires_grad_()
        for C, d in zip((4, 70, 9), dtypes, strict=True)
    ]
    given = problem("smoothed", 6, 4, device)
    found = modgrad.modality_cross_entropy(x, given.targets, **given.options, backend=backend)
    found.losses.sum().backward()
    assert found.losses.dtype == torch.float64
    for m, v in enumerate(x):
        one = modgrad.CrossEntropies(found.losses[m : m + 1], found.scores[m : m + 1])
        # the mass of a sample is added up in the precision of the first modality
        check([v], given, one, [v.grad], [1.0], torch.float32)


def test_mappings_views_and_integer_types(backend, device):
    block = torch.randn(9, 5, 2, device=device)
    x = block.permute(2, 0, 1).requires_grad_()
    targets = torch.randint(0, 5, (18,), device=device)[::2].int()
    found = modgrad.modality_cross_entropy(x, targets, backend=backend)
    found.losses.sum().backward()
    check(list(x.detach()), Problem(targets, {}), found, list(x.grad), [1.0, 1.0])
    named = {"audio": x[0], "visual": x[1]}
    again = modgrad.modality_cross_entropy(named, targets, backend=backend)
    assert torch.equal(again.losses, found.losses)
    # rows that begin at odd addresses
    flat = torch.randn(4 * 7 + 1, device=device)
    odd = flat[1:].view(4, 7).requires_grad_()
    given = problem("classes", 4, 7, device)
    found = modgrad.modality_cross_entropy([odd], given.targets, backend=backend)
    (grad,) = torch.autograd.grad(found.losses.sum(), [odd])
    check([odd], given, found, [grad], [1.0])


def test_all_ignored(backend, device):
    x = [torch.randn(3, 5, device=device, requires_grad=True) for _ in range(2)]
    targets = torch.full((3,), 2, device=device)
    found = modgrad.modality_cross_entropy(x, targets, ignore_index=2, backend=backend)
    assert F.cross_entropy(x[0], targets, ignore_index=2).isnan()
    assert found.losses.isnan().all()
    assert found.scores.isnan().all()
    found.losses.sum().backward()
    assert all(torch.equal(v.grad, torch.zeros_like(v)) for v in x)


def test_ignored_samples_are_not_read(backend, device):
    x = torch.randn(3, 5, device=device)
    targets = torch.tensor([1, IGNORED, 4], device=device)
    kept = modgrad.modality_cross_entropy([x[[0, 2]]], targets[[0, 2]], backend=backend)
    x[1] = float("nan")
    x.requires_grad_()
    found = modgrad.modality_cross_entropy([x], targets, backend=backend)
    assert torch.equal(found.losses, kept.losses)
    assert torch.equal(found.scores, kept.scores)
    found.losses.sum().backward()
    assert x.grad[1].tolist() == [0.0] * 5


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_large_logits(backend, device, label_smoothing):
    x = (1e4 * torch.randn(5, 40, device=device)).requires_grad_()
    given = problem("classes", 5, 40, device)
    given.options["label_smoothing"] = label_smoothing
    found = modgrad.modality_cross_entropy([x], given.targets, **given.options, backend=backend)
    found.losses.sum().backward()
    check([x], given, found, [x.grad], [1.0])


def test_infinite_logits(backend, device):
    rows = [
        [-INF, 0.0, 0.0],  # a masked class
        [0.0, -INF, 0.0],  # the true class is masked
        [-INF, -INF, -INF],  # nothing left
        [0.0, INF, 0.0],
        [0.0, float("nan"), 0.0],
    ]
    x = [torch.tensor([row], device=device, requires_grad=True) for row in rows]
    y = torch.tensor([1], device=device)
    found = modgrad.modality_cross_entropy(x, y, backend=backend)
    losses = [F.cross_entropy(v, y) for v in x]
    torch.testing.assert_close(found.losses, torch.stack(losses), equal_nan=True)
    grads = torch.autograd.grad(sum(losses), x)
    found.losses.sum().backward()
    for v, grad in zip(x, grads, strict=True):
        torch.testing.assert_close(v.grad, grad, equal_nan=True)
    assert found.scores[:2].tolist() == [0.5, 0.0]
    assert found.scores[2:].isnan().all()


def test_a_masked_class_without_mass_adds_nothing(backend, device):
    x = torch.tensor([[-INF, 1.0, 2.0]], device=device, requires_grad=True)
    t = torch.tensor([[0.0, 0.25, 0.75]], device=device)
    found = modgrad.modality_cross_entropy([x], t, backend=backend)
    alone = modgrad.modality_cross_entropy([x[:, 1:]], t[:, 1:], backend=backend)
    torch.testing.assert_close(found, alone)
    found.losses.sum().backward()
    assert x.grad[0, 0] == 0
    assert x.grad.isfinite().all()


def test_same_bits_for_any_number_of_threads(backend, device):
    x = [torch.randn(70, 2000, device=device, requires_grad=True) for _ in range(2)]
    if backend == "triton":
        x = [v[:2].detach().requires_grad_() for v in x]
    targets = torch.randint(0, 2000, (len(x[0]),), device=device)

    def run():
        found = modgrad.modality_cross_entropy(x, targets, label_smoothing=0.1, backend=backend)
        return [*found, *torch.autograd.grad(found.losses.sum(), x)]

    first, threads = run(), torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
    torch.set_num_threads(threads)


def test_one_op_in_each_direction_whatever_the_number_of_modalities(device):
    usable("native", device)
    counts = []
    for M in (2, 7):
        x = [torch.randn(4, 6, device=device, requires_grad=True) for _ in range(M)]
        targets = torch.randint(0, 6, (4,), device=device)
        weights = torch.rand(M, device=device)
        with Ops() as ops:
            losses, _ = modgrad.modality_cross_entropy(x, targets, weights, backend="native")
            torch.autograd.grad(losses, x, torch.ones_like(losses))
        assert ops.count["modgrad_native::modality_cross_entropy"] == 1
        assert ops.count["modgrad_native::modality_cross_entropy_backward"] == 1
        assert ops.reads == 0
        counts.append({k: n for k, n in ops.count.items() if k != "aten::detach"})
    assert counts[0] == counts[1]


@pytest.mark.parametrize("target", [-1, 4, 2**40])
def test_target_out_of_range(backend, device, target):
    x = torch.randn(2, 3, 4, device=device, requires_grad=True)
    targets = torch.tensor([0, target, 1], device=device)
    if device == "cpu":
        with pytest.raises(ValueError, match=rf"`targets\[1\]` is {target}, outside \[0, 4\)"):
            modgrad.modality_cross_entropy(x, targets, backend=backend)
    else:  # a check would need a host read
        found = modgrad.modality_cross_entropy(x, targets, backend=backend)
        assert found.losses.isnan().all()
        (grad,) = torch.autograd.grad(found.losses.sum(), x)
        assert grad[:, 1].isnan().all()


LOGITS, CLASSES = torch.randn(2, 3, 4), torch.zeros(3).long()


@pytest.mark.parametrize(
    ("logits", "targets", "options", "error", "match"),
    [
        (LOGITS[0], CLASSES, {}, ValueError, r"`logits` has shape \[3, 4\]"),
        (LOGITS, CLASSES[:2], {}, ValueError, r"`logits\[0\]` has shape \[3, 4\], allowed: \[2, C"),
        (LOGITS, torch.zeros(3), {}, ValueError, r"`targets` is torch.float32 \[3\] on cpu"),
        (LOGITS, torch.zeros(3, 5), {}, ValueError, r"`targets` has shape \[3, 5\]"),
        (LOGITS, torch.zeros(3, 4), {"ignore_index": 1}, ValueError, "`ignore_index` is 1"),
        (LOGITS, CLASSES.bool(), {}, TypeError, "`targets` has dtype torch.bool"),
        (LOGITS, [0, 1, 2], {}, TypeError, "`targets` is list"),
        (LOGITS.int(), CLASSES, {}, TypeError, r"`logits\[0\]` has dtype torch.int32"),
        ([1, 2], CLASSES, {}, TypeError, r"`logits\[0\]` is int"),
        ([LOGITS[0], 2], CLASSES, {}, TypeError, r"`logits\[1\]` is int"),
        ([], CLASSES, {}, ValueError, "`logits` is empty"),
        (LOGITS, CLASSES.to("meta"), {}, ValueError, "is on meta"),
        (LOGITS, CLASSES, {"label_smoothing": 1.5}, ValueError, "`label_smoothing` is 1.5"),
        (LOGITS, CLASSES, {"class_weights": torch.ones(3)}, ValueError, r"`class_weights` has sh"),
        (LOGITS, CLASSES, {"weights": torch.ones(3)}, ValueError, r"`weights` has shape \[3\]"),
        (
            [LOGITS[0], torch.randn(3, 5)],
            CLASSES,
            {"class_weights": torch.ones(4)},
            ValueError,
            r"`logits\[1\]` has 5 classes",
        ),
    ],
)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_input(backend, logits, targets, options, error, match):
    usable(backend, "cpu")
    with pytest.raises(error, match=match):
        modgrad.modality_cross_entropy(logits, targets, **options, backend=backend)
