"""Two layers of ReLUs on two scalar Gaussian modalities, without samples.

For a scalar x, relu(w x) = |w| relu(sign(w) x): a network is four slopes, of the positive and the
negative part of each modality, and learns from the second moments of these parts.
"""

import numpy as np

SIGNS = np.array([1.0, -1.0, 1.0, -1.0])  # A+, A-, B+, B-: x = x+ - x-


def moments(deviation, correlation):
    """[4, 4]: E[u+ v+] = s_u s_v (sqrt(1 - c^2) + c (pi - arccos c)) / (2 pi)."""
    deviations = np.array([deviation, deviation, 1.0, 1.0])
    same = np.kron(np.eye(2), np.ones((2, 2))) == 1
    c = np.clip(np.outer(SIGNS, SIGNS) * np.where(same, 1, correlation), -1, 1)
    angle = np.sqrt(1 - c**2) + c * (np.pi - np.arccos(c))
    return np.outer(deviations, deviations) * angle / (2 * np.pi)


def ratio(deviation, correlation, *, init, lr, steps, width=100, seed=0):
    """t_B / t_A of y = x_A + x_B, from a random initialisation of norm ``init``."""
    covariance = moments(deviation, correlation)
    cross = covariance @ SIGNS
    generator = np.random.default_rng(seed)
    first, second = generator.normal(0, init / width**0.5, (2, 2, width))
    slopes = np.empty((steps, 2))
    for step in range(steps):
        positive = first > 0
        parts = first * second
        slope = np.stack([(parts * positive).sum(1), -(parts * ~positive).sum(1)], 1)
        slopes[step] = (slope[:, 0] - slope[:, 1]) / 2
        residual = (covariance @ slope.ravel() - cross).reshape(2, 2)
        change = lr * np.where(positive, residual[:, :1], -residual[:, 1:])
        first, second = first - change * second, second - change * first
    half = (1 + correlation / deviation) / 2, slopes[-1, 1] / 2
    return float((slopes[:, 1] > half[1]).argmax() / (slopes[:, 0] > half[0]).argmax())
