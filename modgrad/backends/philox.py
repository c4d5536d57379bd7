"""Standard normals from the counter-based generator Philox4x32-10 and the Box-Muller transform.

Element 4q + j of tensor t is lane j of the block with counter (q low, q high, t, 0) and key seed:
    x0..x3 = philox(counter, key),   u = (x + 1/2) / 2^32,
    z0, z1 = sqrt(-2 ln u0) * (cos, sin)(2 pi u1),   z2, z3 likewise from u2, u3.

Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
"""

import math

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = 0xFFFFFFFF


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * b; the product wraps in int64, which keeps its 64 bits."""
    product = b * a
    return (product >> 32) & _LOW, product & _LOW


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> list[Tensor]:
    """Four 32-bit words per counter, as int64. Seed is an int64 tensor of one element."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return [c0, c1, c2, c3]


def normals(seed: Tensor, tensor_index: int, size: int) -> Tensor:
    """The ``size`` standard normals of one tensor, float32 [N]."""
    q = torch.arange((size + 3) // 4, device=seed.device)
    words = philox(
        (q & _LOW, q >> 32, torch.full_like(q, tensor_index), torch.zeros_like(q)), seed.reshape(())
    )
    u = [word.float() * 2.0**-32 + 2.0**-33 for word in words]
    pairs = []
    for radius, angle in ((u[0], u[1]), (u[2], u[3])):
        r, v = torch.sqrt(-2 * torch.log(radius)), 2 * math.pi * angle
        pairs += [r * torch.cos(v), r * torch.sin(v)]
    return torch.stack(pairs, dim=1).flatten()[:size]
