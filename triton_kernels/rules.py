"""Balancing rules on the device: the formulas of modgrad/rules.py, in float64, a row at a time.

Hyperparameters are known when a kernel is compiled, which keeps them in float64: as an argument a
float arrives in float32.
"""
# mypy: allow-untyped-decorators

import triton
import triton.language as tl

SMALLEST: tl.constexpr = tl.constexpr(1e-3)  # a weight of GradNorm stays positive
OPPOSED: tl.constexpr = tl.constexpr(1e-8)  # |h|^2 / (|g|^2 + |u|^2) below which h is rounding
LARGEST: tl.constexpr = tl.constexpr(3.4028234663852886e38)  # of float32


@triton.jit
def power(x: tl.tensor, p: tl.constexpr) -> tl.tensor:
    """x^p within 1e-12: e^(p ln x) has the error of an exponent of at most 745, in float64."""
    if p == 1.0:
        result = x
    elif p == 0.0:
        result = tl.full(x.shape, 1.0, tl.float64)
    else:
        # the sign of a negative x to an integer p, and no number to another
        SIGN: tl.constexpr = 1.0 if p % 2.0 == 0.0 else -1.0 if p % 2.0 == 1.0 else float("nan")
        size = tl.exp(p * tl.log(tl.abs(x)))
        result = tl.where(x < 0.0, SIGN * size, size)
    return result


@triton.jit
def clipped(x: tl.tensor, low: float, high: float) -> tl.tensor:
    """NaN stays NaN."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def all_finite(x: tl.tensor) -> tl.tensor:
    """Of a vector."""
    return tl.sum((x - x != 0.0).to(tl.int32), 0) == 0


@triton.jit
def ogm(
    scores: tl.tensor,  # [BLOCK], float64
    there: tl.tensor,  # [BLOCK], whether one is
    alpha: tl.constexpr,
    continuous: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The weights [BLOCK], 1 where there is no score."""
    m = tl.arange(0, BLOCK)
    others = there[None, :] & (m[:, None] != m[None, :])
    ratios = tl.where(others, scores[:, None] / scores[None, :], 0.0)
    rho = tl.sum(ratios, 1) / (tl.sum(there.to(tl.int32), 0) - 1)
    lead = rho - 1.0 if continuous != 0.0 else rho
    x = alpha * tl.where(lead < LARGEST, lead, LARGEST)
    tanh = 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)  # rounded before the 1 - tanh, as by definition
    return tl.where(there & (rho > 1.0), 1.0 - tanh, 1.0)


@triton.jit
def equal_norms(
    sq_norms: tl.tensor,  # [BLOCK], 0 where there is none
    exponent: tl.constexpr,
    cap: tl.constexpr,
) -> tl.tensor:
    """The weights [BLOCK]."""
    norms = tl.sqrt(sq_norms)
    there = norms > 0.0
    mean = tl.sum(tl.where(there, norms, 0.0), 0) / tl.sum(there.to(tl.int32), 0)
    found = clipped(power(mean / norms, exponent), 1.0 / cap, cap)
    return tl.where(there & all_finite(norms), found, 1.0)


@triton.jit
def of_one_loss(
    values: tl.tensor,  # [BLOCK]: scores, or squared norms, and 0 where there is none
    there: tl.tensor,  # [BLOCK], whether there is one
    RULE: tl.constexpr,
    FIRST: tl.constexpr,  # its parameters
    SECOND: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The weights [BLOCK] by a rule that does not compare losses."""
    if RULE == "ogm":
        found = ogm(values, there, FIRST, SECOND, BLOCK)
    else:
        tl.static_assert(RULE == "equal_norms", "an unknown rule")
        found = equal_norms(values, FIRST, SECOND)
    return found


@triton.jit
def mmpareto(
    gram: tl.tensor,  # [K, K], of modality m
    m: tl.tensor,
    num_losses: tl.tensor,
    gamma: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Row m of the weights [BLOCK]."""
    k = tl.arange(0, BLOCK)
    own = m + 1
    gg = tl.load(gram)
    gu = tl.load(gram + own)
    uu = tl.load(gram + own * num_losses + own)
    agree = (gu > 0.0) | (gg <= 0.0) | (uu <= 0.0)
    k0 = tl.where(agree, 0.5, clipped((uu - gu) / (gg - 2.0 * gu + uu), 0.0, 1.0))
    k1 = 1.0 - k0
    h = 4.0 * (k0 * k0 * gg + 2.0 * k0 * k1 * gu + k1 * k1 * uu)
    ratio = tl.where(h > OPPOSED * (gg + uu), (gg + 2.0 * gu + uu) / h, 1.0)
    scale = 2.0 * gamma * tl.sqrt(tl.where(ratio < 1.0, 1.0, ratio))
    return tl.where(k == 0, scale * k0, tl.where(k == own, scale * k1, 1.0))


@triton.jit
def pcgrad(
    gram: tl.tensor,  # [K, K], of one modality
    num_losses: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """A row of the weights [BLOCK]."""
    k = tl.arange(0, BLOCK)
    eye = (k[:, None] == k[None, :]) & (k[:, None] < num_losses)
    projected = tl.where(eye, 1.0, 0.0).to(tl.float64)  # [i, k]: gradient i in terms of gradients
    j = tl.zeros((), tl.int64)
    while j < num_losses:
        column = tl.load(gram + k * num_losses + j, mask=k < num_losses, other=0.0)
        sq_norm = tl.load(gram + j * num_losses + j)
        along = tl.where(sq_norm > 0.0, tl.sum(projected * column[None, :], 1), 0.0)
        share = tl.where((along < 0.0) & (k != j), along / sq_norm, 0.0)
        projected -= tl.where(k[None, :] == j, share[:, None], 0.0)
        j += 1
    return tl.sum(projected, 0)


@triton.jit
def gradnorm(
    gram: tl.tensor,  # [M, K, K]
    losses: tl.tensor,  # [K]
    w: tl.tensor,  # [K]
    initial: tl.tensor,  # [K]
    num_modalities: tl.tensor,
    num_losses: tl.tensor,
    alpha: tl.constexpr,
    lr: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The next w and initial, [BLOCK]."""
    k = tl.arange(0, BLOCK)
    there = k < num_losses
    weight = tl.load(w + k, mask=there, other=0.0).to(tl.float64)
    loss = tl.load(losses + k, mask=there, other=1.0).to(tl.float64)
    first = tl.load(initial + k, mask=there, other=1.0).to(tl.float64)
    first = tl.where((first > 0.0) | (loss - loss != 0.0) | (loss <= 0.0), first, loss)
    squares = tl.zeros((BLOCK,), tl.float64)
    diagonal = gram + k * (num_losses + 1)
    m = tl.zeros((), tl.int64)
    while m < num_modalities:
        place = diagonal + m * num_losses * num_losses
        squares += tl.load(place, mask=there, other=0.0)
        m += 1
    norms = tl.sqrt(squares)
    weighted = weight * norms
    ratios = tl.where(there, loss / first, 0.0)
    relative = ratios / (tl.sum(ratios, 0) / num_losses)
    target = tl.sum(weighted, 0) / num_losses * power(relative, alpha)
    sign = tl.where(weighted > target, 1.0, tl.where(weighted < target, -1.0, 0.0))
    stepped = weight - lr * (sign * norms)  # `sign` is float32, and would round lr
    stepped = tl.where(stepped < SMALLEST, SMALLEST, stepped)
    stepped *= num_losses / tl.sum(tl.where(there, stepped, 0.0), 0)
    usable = all_finite(tl.where(there, target, 0.0)) & all_finite(tl.where(there, stepped, 0.0))
    return tl.where(usable, stepped, weight), first
