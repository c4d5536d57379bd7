"""Explicit gradient vectors for the balancers that read their gram."""

import numpy as np
import torch

from modgrad.balancers import Statistics

EPS32 = 2.0**-24  # relative rounding of a weight to float32


def draws(K, seed=0, M=40, D=20):
    """float64 [M, K, D]: gradients of every length from 0.01 to 100, mostly in conflict."""
    rng = np.random.default_rng([seed, K, D])
    common = rng.standard_normal((M, 1, D)) * rng.uniform(-1, 1, (M, K, 1))
    lengths = 10 ** rng.uniform(-2, 2, (M, K, 1))
    return (common + rng.standard_normal((M, K, D)) * rng.uniform(0.1, 1, (M, K, 1))) * lengths


def gram(gradients):
    return torch.tensor(gradients @ gradients.swapaxes(1, 2))


def weigh(balancer, gradients):
    """float64 numpy [M, K]: the weights of the first step."""
    M, K = gradients.shape[:2]
    state = balancer.init(tuple(f"m{m}" for m in range(M)), K, torch.device("cpu"))
    at = torch.tensor(0)
    modulation, _ = balancer.update(Statistics(at, at, gram=gram(gradients)), state)
    assert modulation.weights.dtype == torch.float32
    return modulation.weights.double().numpy()


def combine(weights, gradients):
    return np.einsum("mk,mkd->md", weights, gradients)


def lengths(gradients):
    return np.linalg.norm(gradients, axis=-1)


def rounding(weights, gradients):
    """[M]: how far rounding the weights to float32 can move their combination, twice over."""
    return 2 * EPS32 * (np.abs(weights) * lengths(gradients)).sum(1)
