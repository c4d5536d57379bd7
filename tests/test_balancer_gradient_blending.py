"""Gradient Blending: weights in closed form, and as a minimum found by search."""

import itertools
from decimal import Decimal, localcontext
from math import inf, nan

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from modgrad.balancers import GradientBlending, blending_weights

CPU = torch.device("cpu")
PREVIOUS = (0.2, 0.3, 0.5)


def blend(gain, overfitting, floor=(0.0, 0.0, 0.0), previous=PREVIOUS):
    out = blending_weights(*map(torch.tensor, (gain, overfitting, floor, previous)))
    assert out.dtype == torch.float64
    return out.tolist()


def searched(gain, overfitting):
    """The minimum of sum (w O)^2 / (sum w G)^2 over the simplex, by a grid that closes in.

    The square root is quasi-convex, so halving the grid's width around its best point is safe. In
    50 digits: float64 would find a flat minimum to the root of its eps, 1e-8, only.
    """
    with localcontext() as context:
        context.prec = 50
        G, square = [Decimal(x) for x in gain], [Decimal(x) ** 2 for x in overfitting]

        def risk(a, b):
            w = a, b, 1 - a - b
            progress = sum(x * g for x, g in zip(w, G, strict=True))
            if min(w) < 0 or progress <= 0:
                return Decimal("inf")
            return sum(x * x * s for x, s in zip(w, square, strict=True)) / progress**2

        best, width = (Decimal(1) / 3, Decimal(1) / 3), Decimal(1)
        for _ in range(45):
            steps = [width * i / 4 for i in range(-4, 5)]
            best = min(
                ((best[0] + i, best[1] + j) for i, j in itertools.product(steps, steps)),
                key=lambda point: risk(*point),
            )
            width /= 2
        return [float(x) for x in (*best, 1 - sum(best))]


@pytest.mark.parametrize(
    ("gain", "overfitting", "expected"),
    [
        # 1 / 1, 2 / 4, 1 / 4
        ((1.0, 2.0, 1.0), (1.0, 2.0, 2.0), (4 / 7, 2 / 7, 1 / 7)),
        # 0.5 / 0.01, 0.2 / 0.04, 0.9 / 0.09
        ((0.5, 0.2, 0.9), (0.1, 0.2, 0.3), (10 / 13, 1 / 13, 2 / 13)),
        # a negative gain is worth nothing: 1 / 1, 0, 3 / 9
        ((1.0, -2.0, 3.0), (1.0, 0.5, 3.0), (3 / 4, 0.0, 1 / 4)),
    ],
)
def test_closed_form_is_the_minimum(gain, overfitting, expected):
    found = blending_weights(
        *(torch.tensor(x, dtype=torch.float64) for x in (gain, overfitting, [0.0] * 3, PREVIOUS))
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(found, searched(gain, overfitting), rtol=0, atol=1e-9)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)  # the float32 of the arguments
    return True


def test_overfitting_is_at_least_the_floor():
    # 1 / 0.5^2, 1 / 1, 1 / 2^2
    assert close(
        blend((1.0, 1.0, 1.0), (0.001, 1.0, 2.0), (0.5, 0.5, 0.5)), (16 / 21, 4 / 21, 1 / 21)
    )
    assert blend((1.0, 1.0, 0.0), (0.0, -7.0, 1.0), (0.5, 0.5, 0.5)) == [0.5, 0.5, 0.0]
    # without a floor: 1e-6
    assert close(blend((1.0, 1.0, 1.0), (0.0, 1e-6, -1.0)), (1 / 3, 1 / 3, 1 / 3))


def test_what_lost_has_no_weight():
    assert close(blend((1.0, -1.0, 1.0), (1.0, 0.1, 1.0)), (0.5, 0.0, 0.5))
    assert blend((0.0, 0.0, 1.0), (1.0, 1.0, 1.0)) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("gain", [(0.0, 0.0, 0.0), (-1.0, -2.0, -0.5), (-1.0, nan, 0.0)])
def test_where_all_lost_the_previous_weights_stay(gain):
    assert close(blend(gain, (1.0, 1.0, 1.0)), PREVIOUS)


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_what_is_not_finite_has_no_weight(bad):
    expected = [0.0, 0.5, 0.5]
    assert blend((bad, 1.0, 1.0), (1.0, 1.0, 1.0)) == expected
    assert blend((1.0, 1.0, 1.0), (bad, 1.0, 1.0)) == expected
    assert blend((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (bad, 0.0, 0.0)) == expected
    assert close(blend((bad, bad, bad), (1.0, 1.0, 1.0)), PREVIOUS)


def test_weights_do_not_depend_on_the_scale_of_the_losses():
    gain, overfitting = np.random.default_rng(0).random((2, 3)) + 0.1
    floor = (0.3, 0.3, 0.3)
    plain = blend(gain, overfitting, floor)
    scaled = blend(1e3 * gain, 1e3 * overfitting, tuple(1e3 * x for x in floor))
    assert close(plain, scaled)
    assert close([sum(plain)], [1.0])


def test_never_reads_a_value_on_the_host():
    with FakeTensorMode():
        blending_weights(torch.ones(3), torch.ones(3), torch.ones(3), torch.ones(3))


def test_what_weights_may_be_given():
    def init(weights=None, K=3):
        return GradientBlending(weights).init(("audio", "visual"), K, CPU)

    with pytest.raises(ValueError, match="audio, visual: `losses` names 2, allowed: 3"):
        init(K=2)
    with pytest.raises(ValueError, match=r"names \['audio'\], allowed: all of \['joint', 'audio'"):
        init({"audio": 1.0})
    with pytest.raises(ValueError, match="`weights` has 2 numbers, allowed: 3"):
        init((0.5, 0.5))
    assert init().weights.tolist() == torch.full((3,), 1 / 3).tolist()
