"""PCGrad against the paper's algorithm on explicit gradients."""

import numpy as np
import pytest
from gradients import combine, draws, lengths, rounding, weigh

from modgrad.balancers import PCGrad


def paper(gradients):
    """Algorithm 1 on vectors [K, D], the other losses in their order."""
    total = np.zeros(gradients.shape[1])
    for i in range(len(gradients)):
        p = gradients[i].copy()
        for j in range(len(gradients)):
            if j != i and p @ gradients[j] < 0:
                p -= p @ gradients[j] / (gradients[j] @ gradients[j]) * gradients[j]
        total += p
    return total


@pytest.mark.parametrize("D", [20, 2])
@pytest.mark.parametrize("K", [2, 3, 5])
def test_formula(K, D):
    gradients = draws(K, D=D)
    weights = weigh(PCGrad(), gradients)
    found, bound = combine(weights, gradients), rounding(weights, gradients)
    for m, g in enumerate(gradients):
        assert np.linalg.norm(found[m] - paper(g)) <= bound[m]


def test_two_losses_do_not_conflict_afterwards():
    gradients = draws(2)
    weights = weigh(PCGrad(), gradients)
    products = np.einsum("md,mkd->mk", combine(weights, gradients), gradients)
    assert (products >= -rounding(weights, gradients)[:, None] * lengths(gradients)).all()


def test_without_conflict_nothing_changes():
    assert (weigh(PCGrad(), np.abs(draws(4))) == 1).all()
