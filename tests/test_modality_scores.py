import inputs
import numpy as np
import pytest
import torch

import modgrad
from modgrad.backends import reference


def expected(logits, targets):
    out = []
    for x in logits:
        x = inputs.float64(x)
        p = np.exp(x - x.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        out.append(p[np.arange(len(p)), targets.cpu().numpy()].mean())
    return np.array(out)


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize(("B", "C"), [(1, 1), (1, 2), (33, 7), (5, 1000), (64, 6), (257, 10)])
def test_mean_probability_of_the_true_class(backend, device, dtype, B, C):
    if backend == "triton" and B * C > 1000:
        B = max(1, 1000 // C)
    logits = (3 * torch.randn(3, B, C, device=device)).to(dtype)
    targets = torch.randint(0, C, (B,), device=device)
    found = modgrad.modality_scores(logits, targets, backend=backend)
    assert found.dtype == torch.float32
    # A difference of up to 16 is rounded by 4 units of its exponential; two exponentials are exact
    # to 2 units each, a division and a mean round once; the sum of C rounds sqrt(C) times.
    rtol = (12 + C**0.5) * torch.finfo(torch.float32).eps
    np.testing.assert_allclose(found.cpu().numpy(), expected(logits, targets), rtol=rtol)


def test_modalities_of_different_width_and_dtype(backend, device):
    logits = [torch.randn(9, 4, device=device), torch.randn(9, 11, device=device).half()]
    targets = torch.randint(0, 4, (9,), device=device)
    found = modgrad.modality_scores(logits, targets, backend=backend)
    np.testing.assert_allclose(found.cpu().numpy(), expected(logits, targets), rtol=1e-6)


def test_views_and_integer_types(backend, device):
    logits = torch.randn(9, 5, 2, device=device).permute(2, 0, 1)
    targets = torch.randint(0, 5, (18,), device=device)[::2].int()
    found = modgrad.modality_scores(logits, targets, backend=backend)
    np.testing.assert_allclose(found.cpu().numpy(), expected(logits, targets), rtol=1e-6)


def test_large_and_infinite_logits(backend, device):
    inf = float("inf")
    logits = torch.tensor(
        [
            [[1e4, -1e4, 0.0], [3e38, 0.0, -3e38]],  # no overflow
            [[-inf, 0.0, 0.0], [0.0, -inf, 0.0]],  # masked classes
            [[-inf, -inf, -inf], [0.0, 0.0, 0.0]],  # nothing left
            [[inf, 0.0, 0.0], [0.0, 0.0, 0.0]],
        ],
        device=device,
    )
    found = modgrad.modality_scores(logits, torch.tensor([0, 0], device=device), backend=backend)
    assert found[:2].tolist() == [1.0, 0.25]
    assert found[2:].isnan().all()


def test_scores_do_not_require_gradients(backend, device):
    logits = torch.randn(2, 3, 4, device=device, requires_grad=True)
    found = modgrad.modality_scores(logits, torch.zeros(3, device=device).long(), backend=backend)
    assert not found.requires_grad


@pytest.mark.parametrize("target", [-1, 4])
def test_target_out_of_range(backend, device, target):
    logits = torch.randn(2, 3, 4, device=device)
    targets = torch.tensor([0, target, 1], device=device)
    if device == "cpu":
        with pytest.raises(ValueError, match=rf"`targets\[1\]` is {target}, outside \[0, 4\)"):
            modgrad.modality_scores(logits, targets, backend=backend)
    else:  # a check would need a host read
        assert modgrad.modality_scores(logits, targets, backend=backend).isnan().all()
    # the definition itself reads no other place: a GPU would not go on after that
    logits = list(logits)
    assert reference.modality_scores(logits, targets).isnan().all()
    inside = reference.modality_scores(logits, targets.clamp(0, 3))
    assert inside.isfinite().all()


@pytest.mark.parametrize(
    ("logits", "targets", "error", "match"),
    [
        (torch.randn(3, 4), torch.zeros(3).long(), ValueError, r"`logits` has shape \[3, 4\]"),
        (torch.randn(2, 3, 4), torch.zeros(5).long(), ValueError, r"`logits\[0\]` has shape"),
        (torch.randn(2, 3, 4), torch.zeros(3), TypeError, "`targets` has dtype torch.float32"),
        (torch.randn(2, 0, 4), torch.zeros(0).long(), ValueError, r"`targets` has shape \[0\]"),
        (torch.randn(2, 3, 4).int(), torch.zeros(3).long(), TypeError, r"`logits\[0\]` has dtype"),
        (torch.randn(2, 3, 4), torch.zeros(3, device="meta").long(), ValueError, "is on meta"),
        (torch.randn(2, 3, 4), [0, 1, 2], TypeError, "`targets` is list"),
        ([], torch.zeros(3).long(), ValueError, "`logits` is empty"),
    ],
)
def test_bad_input(logits, targets, error, match):
    with pytest.raises(error, match=match):
        modgrad.modality_scores(logits, targets)
