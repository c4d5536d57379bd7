"""Awkward tensors, and what the ops should give for them by float64 numpy."""

import numpy as np
import torch

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
EPS = {dtype: torch.finfo(dtype).eps for dtype in DTYPES}


def shapes(backend):
    """Shapes around the kernels' boundaries: chunks of 16384, vectors of 4, 8, 16, quads of 4."""
    small = [(3, 5), (0,), (1,), (), (17,), (2, 3, 4, 5), (1023,), (4, 0, 3), (1025,)]
    # the interpreter of Triton takes milliseconds a statement
    large = [(16384,), (16385,), (129, 257)]
    return small + (large[1:2] if backend == "triton" else large)


def tensors(backend, dtype, device):
    """One tensor a shape, then the same memory laid out badly."""
    plain = [torch.randn(shape, device=device).to(dtype) for shape in shapes(backend)]
    block = torch.randn(4096, device=device).to(dtype)
    return [
        *plain,
        torch.randn(2, 3, 4, 5, device=device).to(dtype).to(memory_format=torch.channels_last),
        torch.randn(7, 5, device=device).to(dtype).t(),
        block[1:1000],  # odd alignment
        block[1003:1010],
        torch.randn(6, 8, device=device).to(dtype)[:, ::2],  # gaps
        torch.randn(5, 1, device=device).to(dtype)[:, 0],
    ]


def groups(count, num_groups):
    return [(7 * i + 3) % num_groups for i in range(count)]


def float64(tensor):
    return tensor.detach().double().cpu().numpy()


def relative_error(found, expected):
    """||found - expected|| / ||expected||, 0 where both vanish, never small for NaN."""
    found, expected = np.asarray(found), np.asarray(expected)
    difference, size = np.linalg.norm(found - expected), np.linalg.norm(expected)
    return 0.0 if difference == 0 else difference / size if size > 0 else np.inf
