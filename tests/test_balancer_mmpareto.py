"""MMPareto against its formula on explicit gradients."""

import numpy as np
import pytest
import torch
from gradients import EPS32, combine, draws, gram, rounding, weigh

from modgrad.balancers import MMPareto, Smoothed, Statistics


def paper(g, u, gamma):
    """The paper's update of one encoder, on vectors."""
    nearest = min(max((u - g) @ u / ((u - g) @ (u - g)), 0.0), 1.0)
    k = 0.5 if g @ u > 0 else nearest
    h = 2 * k * g + 2 * (1 - k) * u
    magnify = max(1.0, np.linalg.norm(g + u) / np.linalg.norm(h))
    return gamma * magnify * h


def encoders(M, seed):
    """[M, M + 1, D]: in encoder m the joint gradient and its own; no gradient of the others."""
    pairs = draws(2, seed, M)
    gradients = np.zeros((M, M + 1, pairs.shape[-1]))
    gradients[:, 0] = pairs[:, 0]
    gradients[range(M), range(1, M + 1)] = pairs[:, 1]
    return gradients, pairs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("M", [1, 2, 3, 20])
def test_formula(M, seed):
    gradients, pairs = encoders(M, seed)
    weights = weigh(MMPareto(1.3), gradients)
    found, bound = combine(weights, gradients), rounding(weights, gradients)
    for m, (g, u) in enumerate(pairs):
        assert np.linalg.norm(found[m] - paper(g, u, 1.3)) <= bound[m]


def test_no_conflict_and_no_shrinking():
    gradients, pairs = encoders(20, 7)
    conflict = np.einsum("md,md->m", pairs[:, 0], pairs[:, 1]) <= 0
    assert 0 < conflict.sum() < 20, "both kinds"
    weights = weigh(MMPareto(1.0), gradients)
    found, bound = combine(weights, gradients), rounding(weights, gradients)
    for m, (g, u) in enumerate(pairs):
        assert found[m] @ g >= -bound[m] * np.linalg.norm(g)
        assert found[m] @ u >= -bound[m] * np.linalg.norm(u)
        assert np.linalg.norm(found[m]) >= np.linalg.norm(g + u) - bound[m]


def test_a_gradient_of_another_modalitys_loss_is_left_alone():
    gradients, _ = encoders(2, 0)
    stray = gradients.copy()
    stray[0, 2] = draws(1)[0, 0]
    assert (weigh(MMPareto(), stray) == weigh(MMPareto(), gradients)).all()
    assert weigh(MMPareto(), stray)[0, 2] == 1


def test_weights_stay_bounded_where_gradients_cancel():
    g = draws(1, M=1)[0, 0]
    for ratio in (-1.0, -2.0, -1e-3):
        for off in (0.0, 1e-9, 1e-6, 1e-3):
            u = ratio * g + off * np.linalg.norm(g) * draws(1, 5, M=1)[0, 0]
            weights = weigh(MMPareto(), np.stack([g, u])[None])
            # lambda <= |g + u| / (1e-4 sqrt(|g|^2 + |u|^2)) <= sqrt(2) 1e4, times 2 gamma = 3
            assert np.isfinite(weights).all()
            assert weights.max() <= 3 * 2**0.5 * 1e4


def weigh_tensors(balancer, tensors, group, M):
    """[M, K] and [P]: of the first step, from gradients [P, K, D] of parameter tensors."""
    each = gram(tensors)
    whole = torch.stack([each[[g == m for g in group]].sum(0) for m in range(M)])
    state = balancer.init(tuple(f"m{m}" for m in range(M)), M + 1, torch.device("cpu"))
    at = torch.tensor(0)
    statistics = Statistics(
        at, at, gram=whole, tensor_gram=each, tensor_group=torch.tensor(group, dtype=torch.int64)
    )
    modulation, _ = balancer.update(statistics, state)
    assert modulation.tensor_scale.dtype == torch.float32
    return modulation.weights.double().numpy(), modulation.tensor_scale.double().numpy()


def test_a_lambda_of_each_tensor_by_hand():
    """Encoder 1: g = (2, 0), u = (-1, 1) in two tensors, k0 = 0.4, h = (0.4, 1.2), g + u = (1, 1).
    Encoder 0: g = (1, 0), u = (0.5, 0.5) agree."""
    tensors = np.zeros((4, 3, 1))
    tensors[0, :, 0] = 2, 0, -1
    tensors[1, :, 0] = 1, 0.5, 0
    tensors[2, :, 0] = 0, 0, 1
    tensors[3, :, 0] = 0, 0.5, 0
    weights, scale = weigh_tensors(MMPareto(1.0, per_tensor=True), tensors, [1, 0, 1, 0], 2)
    np.testing.assert_allclose(weights, [[1, 1, 1], [0.8, 1, 1.2]], rtol=EPS32)
    np.testing.assert_allclose(scale, [2.5, 1, 1, 1], rtol=EPS32)


@pytest.mark.parametrize("seed", range(5))
def test_formula_per_tensor(seed):
    M, each = 3, 4
    gradients, pairs = encoders(M, seed)
    tensors = gradients.reshape(M, M + 1, each, -1).swapaxes(1, 2).reshape(M * each, M + 1, -1)
    group = [p // each for p in range(M * each)]
    weights, scale = weigh_tensors(MMPareto(1.3, per_tensor=True), tensors, group, M)
    for p, m in enumerate(group):
        g, u = pairs[m]
        k = 0.5 if g @ u > 0 else (u - g) @ u / ((u - g) @ (u - g))
        a, b = tensors[p, 0], tensors[p, m + 1]
        h = 2 * k * a + 2 * (1 - k) * b
        expected = 1.3 * max(1.0, np.linalg.norm(a + b) / np.linalg.norm(h)) * h
        full = weights[m] * scale[p]
        found, bound = full @ tensors[p], 2 * rounding(full[None], tensors[p : p + 1])
        assert np.linalg.norm(found - expected) <= bound


def test_a_tensor_without_a_gradient_keeps_its_scale():
    tensors = np.zeros((3, 2, 2))
    tensors[0] = draws(2, M=1, D=2)[0]
    tensors[1, 0] = 1.0  # the joint loss alone reaches it
    _, scale = weigh_tensors(MMPareto(per_tensor=True), tensors, [0, 0, 0], 1)
    assert np.isfinite(scale).all()
    assert scale[2] == 1


def test_only_the_variant_asks_for_the_gram_of_tensors():
    assert MMPareto().needs == {"gram"}
    assert MMPareto(per_tensor=True).needs == {"gram", "tensor_gram"}
    with pytest.raises(ValueError, match="`balancer` of Smoothed has weights per tensor"):
        Smoothed(MMPareto(per_tensor=True))


def test_a_gram_that_is_not_finite_leaves_all_tensors_of_the_encoder_alone():
    """|g|^2 overflows in one tensor; the other would have k0 = 0, h = 2 u, lambda = 3."""
    tensors = np.zeros((2, 2, 2))
    tensors[0] = [[1e200, 0.0], [-1.0, 1.0]]
    tensors[1] = [[5.0, 0.0], [1.0, 0.0]]
    with np.errstate(over="ignore"):
        weights, scale = weigh_tensors(MMPareto(per_tensor=True), tensors, [0, 0], 1)
    assert weights.tolist() == [[1.0, 1.0]]
    assert scale.tolist() == [1.0, 1.0]
