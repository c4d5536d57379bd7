"""Prototypes against float64 numpy: means, momentum, probabilities, and their gradients."""

import copy
import math

import numpy as np
import pytest
import torch
from test_distributed import join, leave, run
from torch._subclasses.fake_tensor import FakeTensorMode

from modgrad import Prototypes

WIDTHS = {"audio": 5, "visual": 3}
C = 4


def batch(size=9, device="cpu", dtype=torch.float32, classes=C):
    features = {m: torch.randn(size, D, device=device).to(dtype) for m, D in WIDTHS.items()}
    return features, torch.randint(0, classes, (size,), device=device)


def filled(device="cpu", **options):
    prototypes = Prototypes(C, WIDTHS, **options).to(device)
    features, _ = batch(4 * C, device)
    prototypes.accumulate(features, torch.arange(4 * C, device=device) % C)
    prototypes.refresh()
    return prototypes


def numpy(tensor):
    return tensor.detach().double().cpu().numpy()


def probabilities(h, c):
    """p [B, C] by softmax over distances, one difference vector at a time."""
    distance = np.linalg.norm(h[:, None] - c[None], axis=2)
    e = np.exp(distance.min(1, keepdims=True) - distance)
    return e / e.sum(1, keepdims=True)


def test_by_hand():
    """At distances 0 and 1: p = e / (1 + e)."""
    prototypes = Prototypes(2, {"audio": 2})
    prototypes.accumulate(
        {"audio": torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 1.0]])}, torch.tensor([0, 0, 1])
    )
    prototypes.refresh()
    assert prototypes["audio"].tolist() == [[2.0, 0.0], [2.0, 1.0]]
    out = prototypes({"audio": torch.tensor([[2.0, 0.0]])}, torch.tensor([0]))
    p = math.e / (1 + math.e)
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    found = [out.losses["audio"].item(), out.scores.item(), out.entropies["audio"].item()]
    np.testing.assert_allclose(found, [-math.log(p), p, entropy], rtol=2 * 2**-23, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_against_numpy(device, dtype):
    prototypes = filled(device)
    features, targets = batch(33, device, dtype)
    out = prototypes(features, targets)
    y = targets.cpu().numpy()
    wide = torch.promote_types(dtype, torch.float32)
    # all is float64 but the last rounding
    rtol = 2 * torch.finfo(wide).eps if wide == torch.float32 else 1e-12
    for i, m in enumerate(WIDTHS):
        p = probabilities(numpy(features[m]), numpy(prototypes[m]))
        own = p[np.arange(33), y]
        assert out.losses[m].dtype == wide
        np.testing.assert_allclose(out.losses[m].item(), -np.log(own).mean(), rtol=rtol)
        np.testing.assert_allclose(
            out.entropies[m].item(), -(p * np.log(p)).sum(1).mean(), rtol=rtol
        )
        np.testing.assert_allclose(out.scores[i].item(), own.mean(), rtol=2**-22)
    assert out.scores.dtype == torch.float32
    assert not out.scores.requires_grad


def test_gradients_are_those_of_the_formula(device):
    prototypes = filled(device)
    features, targets = batch(6, device, torch.float64)
    for h in features.values():
        h.requires_grad_()
    for of in ("losses", "entropies"):

        def value(*hs, of=of):
            out = prototypes(dict(zip(WIDTHS, hs, strict=True)), targets)
            return tuple(getattr(out, of).values())

        assert torch.autograd.gradcheck(value, tuple(features.values()))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_gradient_at_distance_zero(device, scale):
    prototypes = Prototypes(2, {"audio": 3}).to(device)
    centres = scale * torch.randn(2, 3, device=device)
    prototypes.accumulate({"audio": centres}, torch.arange(2, device=device))
    prototypes.refresh()
    for at in (centres[:1], centres[:1] * (1 + 2**-20)):
        h = at.clone().requires_grad_()
        out = prototypes({"audio": h}, torch.zeros(1, dtype=torch.int64, device=device))
        (out.losses["audio"] + out.entropies["audio"]).backward()
        assert h.grad.isfinite().all()
        assert h.grad.norm() <= 4  # every distance has a gradient of length 1 at most


def test_far_away_is_finite(device):
    prototypes = filled(device)
    features, targets = batch(5, device)
    features = {m: (1e4 * h).requires_grad_() for m, h in features.items()}
    out = prototypes(features, targets)
    (sum(out.losses.values()) + sum(out.entropies.values())).backward()
    assert all(h.grad.isfinite().all() for h in features.values())
    assert out.scores.isfinite().all()


def test_means_do_not_depend_on_the_batches(device):
    features, targets = batch(40, device)
    whole, split = Prototypes(C, WIDTHS).to(device), Prototypes(C, WIDTHS).to(device)
    whole.accumulate(features, targets)
    for part in (slice(0, 7), slice(7, 8), slice(8, 40)):
        split.accumulate({m: h[part] for m, h in features.items()}, targets[part].int())
    for prototypes in (whole, split):
        prototypes.refresh()
        for m, h in features.items():
            for k in range(C):
                mean = numpy(h)[targets.cpu().numpy() == k].mean(0)
                # float64 means, rounded to float32
                np.testing.assert_allclose(numpy(prototypes[m][k]), mean, rtol=2**-23, atol=1e-12)


def test_momentum_and_absent_classes(device):
    prototypes = Prototypes(3, {"audio": 2}, momentum=0.25).to(device)

    def refresh(points, targets):
        if points:
            prototypes.accumulate(
                {"audio": torch.tensor(points, device=device)},
                torch.tensor(targets, device=device),
            )
        prototypes.refresh()
        return prototypes["audio"].tolist()

    assert refresh([[4.0, 0.0], [0.0, 8.0]], [0, 1]) == [[4.0, 0.0], [0.0, 8.0], [0.0, 0.0]]
    # 3/4 (8, 0) + 1/4 (4, 0); class 1 as it was; class 2 for the first time
    later = [[7.0, 0.0], [0.0, 8.0], [1.0, 1.0]]
    assert refresh([[8.0, 0.0], [1.0, 1.0]], [0, 2]) == later
    assert refresh([], []) == later
    nan = math.nan
    assert refresh([[nan, 0.0], [math.inf, 0.0], [0.0, 12.0], [5.0, 5.0]], [0, 0, 1, 9]) == [
        [7.0, 0.0],
        [0.0, 11.0],
        [1.0, 1.0],
    ]


def test_before_the_first_refresh_nothing_is_pulled(device):
    features, targets = batch(8, device)
    features = {m: h.requires_grad_() for m, h in features.items()}
    out = Prototypes(C, WIDTHS).to(device)(features, targets)
    (sum(out.losses.values()) + sum(out.entropies.values())).backward()
    assert out.scores.tolist() == [1 / C] * 2
    for h in features.values():
        assert h.grad.abs().max().item() <= 2**-40


def test_state_resumes_in_mid_run(device):
    torch.manual_seed(0)
    data = [batch(6, device) for _ in range(6)]
    plain, resumed = Prototypes(C, WIDTHS).to(device), Prototypes(C, WIDTHS).to(device)
    for i, (features, targets) in enumerate(data):
        for prototypes in (plain, resumed):
            prototypes.accumulate(features, targets)
            prototypes.refresh()
        if i == 2:
            saved = copy.deepcopy(resumed.state_dict())
            resumed = Prototypes(C, WIDTHS).to(device)
            resumed.load_state_dict(saved)
    for m in WIDTHS:
        assert torch.equal(plain[m], resumed[m])
    assert set(saved) == {f"{name}_{m}" for m in WIDTHS for name in ("prototypes", "seen")}


def test_sums_are_exact_where_the_model_is_half(device):
    prototypes = Prototypes(1, {"audio": 1}, momentum=0.0).to(device, torch.bfloat16)
    h = torch.full((1000, 1), 0.5, device=device, dtype=torch.bfloat16)
    for _ in range(4):  # bfloat16 counts to 256 only
        prototypes.accumulate({"audio": h}, torch.zeros(1000, dtype=torch.int64, device=device))
    prototypes.refresh()
    assert prototypes["audio"].item() == 0.5


def test_autocast_rounds_nothing(device):
    prototypes = filled(device)
    features, targets = batch(9, device)
    expected = prototypes(features, targets)
    with torch.autocast(device, dtype=torch.bfloat16):
        found = prototypes(features, targets)
    assert torch.equal(found.scores, expected.scores)
    for m in WIDTHS:
        assert torch.equal(found.losses[m], expected.losses[m])


def test_never_reads_a_value_on_the_host():
    with FakeTensorMode():
        prototypes = Prototypes(C, WIDTHS)
        for _ in range(2):
            features, targets = batch()
            prototypes.accumulate(features, targets)
            prototypes.refresh()
            features = {m: h.requires_grad_() for m, h in features.items()}
            out = prototypes(features, targets)
            (sum(out.losses.values()) + sum(out.entropies.values())).backward()


def rank(rank, folder):
    join(rank, folder)
    prototypes = Prototypes(2, {"audio": 1}, momentum=0.0)
    if rank == 0:  # the other has no samples
        prototypes.accumulate({"audio": torch.tensor([[1.0], [3.0]])}, torch.tensor([0, 0]))
    prototypes.refresh()
    assert prototypes["audio"].tolist() == [[2.0], [0.0]]
    prototypes.accumulate({"audio": torch.tensor([[4.0 * rank]])}, torch.tensor([1]))
    prototypes.refresh()
    assert prototypes["audio"].tolist() == [[2.0], [2.0]]
    leave()


def test_ranks_have_the_means_of_all(tmp_path):
    run(rank, str(tmp_path))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Prototypes(0, WIDTHS), "`num_classes` is 0, allowed: >= 1"),
        (lambda: Prototypes(2, {}), "`features` is empty"),
        (lambda: Prototypes(2, {"audio": 0}), r"`features\['audio'\]` is 0, allowed: >= 1"),
        (lambda: Prototypes(2, WIDTHS, 1.0), r"`momentum` is 1.0, allowed: \[0, 1\)"),
        (lambda: Prototypes(2, WIDTHS, math.nan), "`momentum` is nan"),
    ],
)
def test_bad_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_bad_batches_change_nothing():
    prototypes = filled()
    features, targets = batch()
    for call in (prototypes, prototypes.accumulate):
        with pytest.raises(ValueError, match=r"`features` has \['audio'\], allowed: \['audio', 'v"):
            call({"audio": features["audio"]}, targets)
        with pytest.raises(ValueError, match=r"`features\['visual'\]` has shape \[9, 5\], allowed"):
            call({m: features["audio"] for m in WIDTHS}, targets)
        with pytest.raises(ValueError, match=r"`targets` is torch.float32 \[9\], allowed: integ"):
            call(features, targets.float())
        with pytest.raises(ValueError, match=r"`targets` is torch.int64 \[\], allowed"):
            call(features, targets[0])
    before = prototypes["audio"].clone()
    prototypes.refresh()
    assert torch.equal(prototypes["audio"], before)
