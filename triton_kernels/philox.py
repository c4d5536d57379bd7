"""The standard normals of modgrad/backends/philox.py, four to a quad."""
# mypy: allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def uniform(word: tl.tensor) -> tl.tensor:
    """(x + 1/2) / 2^32, in (0, 1]."""
    return word.to(tl.float32) * 2.0**-32 + 2.0**-33


@triton.jit
def cos_sin(v: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """cos v and sin v for 0 <= v <= 2 pi, within 1.2e-7.

    tl.cos also reduces arguments of any size, which doubles the registers. Here v = k pi/2 + t with
    |t| <= pi/4, pi/2 in three parts, and the polynomials of Cephes' sinf and cosf.
    """
    k = tl.floor(v * 0.6366197723675814 + 0.5)
    t = v - k * 1.5703125 - k * 4.837512969970703e-4 - k * 7.549789948768648e-8
    s = t * t
    sin = ((-1.9515295891e-4 * s + 8.3321608736e-3) * s - 1.6666654611e-1) * s * t + t
    cos = ((2.443315711809948e-5 * s - 1.388731625493765e-3) * s + 4.166664568298827e-2) * s * s
    cos = cos - 0.5 * s + 1.0
    quadrant = k.to(tl.int32)
    odd = quadrant % 2 == 1
    x = tl.where(odd, sin, cos)
    y = tl.where(odd, cos, sin)
    return tl.where((quadrant + 1) & 2 == 2, -x, x), tl.where(quadrant & 2 == 2, -y, y)


@triton.jit
def pair(word0: tl.tensor, word1: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """sqrt(-2 ln u0) * (cos, sin)(2 pi u1)."""
    r = tl.sqrt_rn(-2.0 * tl.log(uniform(word0)))
    x, y = cos_sin(6.283185307179586 * uniform(word1))
    return r * x, r * y


@triton.jit
def normals(seed: tl.tensor, tensor: tl.tensor, first: tl.tensor, SIZE: tl.constexpr) -> tl.tensor:
    """The normals of elements first .. first + SIZE - 1 of a tensor; ``first`` is 4 * quad."""
    quad = first // 4 + tl.arange(0, SIZE // 4)
    low = quad.to(tl.uint32)
    high = (quad >> 32).to(tl.uint32)
    zero = low * 0
    x0, x1, x2, x3 = tl.philox(seed, low, high, zero + tensor.to(tl.uint32), zero)
    z0, z1 = pair(x0, x1)
    z2, z3 = pair(x2, x3)
    return tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3))
