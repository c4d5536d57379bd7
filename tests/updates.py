"""Optimizer updates under test: fresh arguments on a device, and their float64 numpy results."""

import inputs
import numpy as np
import torch

M = 3
WEIGHTS = [0.375, 1.0, 1.75]  # exact in float32


def groups(count):
    """Every group, and shared parameters."""
    return [(5 * i + 2) % (M + 1) - 1 for i in range(count)]


def like(tensors, dtype=None):
    """Fresh values in the same memory order."""
    return [torch.randn_like(t, dtype=torch.float32).to(dtype or t.dtype) for t in tensors]


def adam(backend, device, dtype, state_dtype=None, amsgrad=False):
    """Params, grads, and the states of some earlier steps, all different."""
    params = inputs.tensors(backend, dtype, device)
    first = like(params, state_dtype)
    second = [x.square() for x in like(params, state_dtype)]
    largest = [2 * x for x in second] if amsgrad else []
    steps = [torch.tensor(float(i % 5), device=device) for i in range(len(params))]
    return params, like(params), first, second, largest, steps


def numpy_gradient(grad, weight, options):
    x = inputs.float64(grad) / options.get("grad_scale", 1.0)
    x = x * (weight if options.get("apply") != "update" else 1.0)
    return -x if options.get("maximize") else x


def numpy_adam(p, x, m, v, largest, step, lr, b1, b2, eps, decay, decoupled):
    """One parameter's update in float64: p, m, v and the largest v."""
    if decoupled:
        p = p * (1 - lr * decay)
    else:
        x = x + decay * p
    m = b1 * m + (1 - b1) * x
    v = b2 * v + (1 - b2) * x * x
    largest = v if largest is None else np.maximum(largest, v)
    step = step + 1
    used = largest / (1 - b2**step)
    return p - lr * (m / (1 - b1**step)) / (np.sqrt(used) + eps), m, v, largest


def numpy_sgd(p, x, b, lr, momentum, dampening, decay, nesterov, first):
    x = x + decay * p
    if b is not None:
        b = x if first else momentum * b + (1 - dampening) * x
        x = x + momentum * b if nesterov else b
    return p - lr * x, b


def assert_near(found, expected, dtype, roundings):
    """Within ``roundings`` of the wide dtype at the size of the largest term, then one of dtype."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if expected.size:
        size = np.abs(expected).max() + 1.0
        error = np.abs(inputs.float64(found) - expected).max()
        assert error <= (roundings * inputs.EPS[wide] + inputs.EPS[found.dtype]) * size
