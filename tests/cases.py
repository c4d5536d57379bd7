"""The table that drives tests/test_balancers.py: a row for every balancer."""

import math
from typing import Any, NamedTuple

from modgrad.balancers import (
    DWA,
    MGDA,
    OGM,
    AlignedMTL,
    Between,
    CAGrad,
    Clipped,
    Every,
    FixedWeights,
    GradNorm,
    MMPareto,
    PCGrad,
    Smoothed,
    UncertaintyWeighting,
    UPGrad,
)

THREE = ("audio", "visual", "text")

# Grams of two gradients by hand.
CONFLICT = [[4.0, -2.0], [-2.0, 2.0]]  # (2, 0) and (-1, 1)
AGREE = [[1.0, 1.0], [1.0, 2.0]]  # (1, 0) and (1, 1)
EVEN = [[2.0, -1.0], [-1.0, 2.0]]  # equally long, in conflict
OPPOSED = [[1.0, -1.0], [-1.0, 1.0]]
ZERO = [[0.0, 0.0], [0.0, 0.0]]
ONE_ZERO = [[4.0, 0.0], [0.0, 0.0]]
NAN = [[1.0, math.nan], [math.nan, 1.0]]
INF = [[math.inf, -math.inf], [-math.inf, math.inf]]
# and of three: (2, 0), (-1, 1), and no gradient
CONFLICT_AND_ZERO = [[4.0, -2.0, 0.0], [-2.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
# and the same with the two that are there at places 0 and 2
CONFLICT_APART = [[4.0, 0.0, -2.0], [0.0, 0.0, 0.0], [-2.0, 0.0, 2.0]]
# (1, 0), (1, 1), and none; none in the middle
AGREE_AND_ZERO = [[1.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
AGREE_APART = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 2.0]]
NAN_THREE = [[math.nan] * 3] * 3


class Case(NamedTuple):
    """A balancer, and weights computed by hand for its first step."""

    balancer: Any
    statistics: dict[str, list[Any]]  # fields of Statistics
    weights: list[
        Any
    ]  # [M]; [M, K] with several losses, or [K] where a method weights whole losses
    noise: list[float] | None = None
    modalities: tuple[str, ...] = ("audio", "visual")
    num_losses: int = 1
    loss_per_modality: bool = False  # loss m + 1 is modality m's: permuted with the modalities


def gram_case(balancer, gram, weights, losses=None):
    statistics = {"gram": gram} if losses is None else {"gram": gram, "losses": losses}
    return Case(balancer, statistics, weights, num_losses=len(gram[0]))


def mmpareto(gram, weights, gamma=1.5):
    return gram_case(MMPareto(gamma), gram, weights)._replace(loss_per_modality=True)


T = (6 - math.sqrt(6)) / 15  # see "CAGrad conflict"

CASES = {
    "OGM": Case(OGM(alpha=0.3), {"scores": [0.8, 0.4]}, [1 - math.tanh(0.6), 1.0]),
    "OGM behind": Case(OGM(alpha=0.8), {"scores": [0.1, 0.3]}, [1.0, 1 - math.tanh(2.4)]),
    "OGM equal": Case(OGM(alpha=0.8), {"scores": [0.5, 0.5]}, [1.0, 1.0]),
    "OGM zero": Case(OGM(alpha=0.8), {"scores": [0.5, 0.0]}, [0.0, 1.0]),
    "OGM zeros": Case(OGM(alpha=0.8), {"scores": [0.0, 0.0]}, [1.0, 1.0]),
    "OGM nan": Case(OGM(alpha=0.8), {"scores": [0.5, math.nan]}, [1.0, 1.0]),
    "OGM-GE": Case(
        OGM(alpha=0.1, noise=1.0), {"scores": [0.6, 0.2]}, [1 - math.tanh(0.3), 1.0], [1.0, 1.0]
    ),
    # mean pairwise ratios: (0.8/0.4 + 0.8/0.2) / 2 = 3, (1/2 + 2) / 2 = 1.25, (1/4 + 1/2) / 2
    "OGM three": Case(
        OGM(alpha=0.3),
        {"scores": [0.8, 0.4, 0.2]},
        [1 - math.tanh(0.9), 1 - math.tanh(0.375), 1.0],
        modalities=THREE,
    ),
    "OGM continuous": Case(
        OGM(alpha=0.3, form="continuous"), {"scores": [0.8, 0.4]}, [1 - math.tanh(0.3), 1.0]
    ),
    "OGM continuous zero": Case(
        OGM(alpha=0.3, form="continuous"), {"scores": [0.5, 0.0]}, [0.0, 1.0]
    ),
    "OGM continuous nan": Case(
        OGM(alpha=0.3, form="continuous"), {"scores": [math.nan, 0.5]}, [1.0, 1.0]
    ),
    "OGM alpha zero": Case(OGM(alpha=0.0), {"scores": [0.5, 0.0]}, [1.0, 1.0]),
    "FixedWeights": Case(FixedWeights({"visual": 0.25}), {}, [1.0, 0.25]),
    "FixedWeights three": Case(
        FixedWeights({"text": 3.0, "audio": 0.0}), {}, [0.0, 1.0, 3.0], modalities=THREE
    ),
    "MMPareto agree": mmpareto([AGREE_AND_ZERO, AGREE_APART], [[1.5, 1.5, 1.0], [1.5, 1.0, 1.5]]),
    # k0 = (2 + 2) / (2 + 4 + 4) = 0.4, h = 0.8 (2, 0) + 1.2 (-1, 1) = (0.4, 1.2), |h|^2 = 1.6,
    # |g + u|^2 = |(1, 1)|^2 = 2: lambda = sqrt(1.25), weights 1.5 lambda (0.8, 1.2)
    "MMPareto conflict": mmpareto(
        [CONFLICT_AND_ZERO, AGREE_APART],
        [[1.2 * math.sqrt(1.25), 1.8 * math.sqrt(1.25), 1.0], [1.5, 1.0, 1.5]],
    ),
    # gamma 1; (2, 0) and (0, 1): k0 = 1 / 5, h = (0.8, 1.6), |h|^2 = 3.2, |g + u|^2 = 5
    "MMPareto orthogonal": mmpareto(
        [[[4.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], CONFLICT_APART],
        [
            [0.4 * math.sqrt(1.5625), 1.6 * math.sqrt(1.5625), 1.0],
            [0.8 * math.sqrt(1.25), 1.0, 1.2 * math.sqrt(1.25)],
        ],
        gamma=1.0,
    ),
    # k0 = (1 + 1/2) / (4 + 1 + 1) = 1/4, |h|^2 = 4 (4/16 - 2 * 3/16 * 1/2 + 9/16) = 2.5,
    # |g + u|^2 = 4 - 1 + 1 = 4: lambda^2 = 1.6
    "MMPareto uneven": mmpareto(
        [[[4.0, -0.5, 0.0], [-0.5, 1.0, 0.0], [0.0, 0.0, 0.0]], AGREE_APART],
        [[0.75 * math.sqrt(1.6), 2.25 * math.sqrt(1.6), 1.0], [1.5, 1.0, 1.5]],
    ),
    # opposed: k = (1/2, 1/2), h = 0, lambda = 1; no gradients: as if they agreed
    "MMPareto opposed": mmpareto(
        [[[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0] * 3], [[0.0] * 3] * 3],
        [[1.5, 1.5, 1.0], [1.5, 1.0, 1.5]],
    ),
    "MMPareto one zero": mmpareto(
        [[[4.0, 0.0, 0.0], [0.0] * 3, [0.0] * 3], [[0.0] * 3, [0.0] * 3, [0.0, 0.0, 4.0]]],
        [[1.5, 1.5, 1.0], [1.5, 1.0, 1.5]],
    ),
    "MMPareto nan": mmpareto([NAN_THREE, AGREE_APART], [[1.0, 1.0, 1.0], [1.5, 1.0, 1.5]]),
    # p_0 = g_0 + 2/2 g_1, p_1 = g_1 + 2/4 g_0
    "PCGrad": gram_case(PCGrad(), [CONFLICT, AGREE], [[1.5, 2.0], [1.0, 1.0]]),
    # p_0 = g_0 + g_1 = 0 = p_1
    "PCGrad opposed": gram_case(PCGrad(), [OPPOSED, ZERO], [[2.0, 2.0], [1.0, 1.0]]),
    "PCGrad one zero": gram_case(PCGrad(), [ONE_ZERO, NAN], [[1.0, 1.0], [1.0, 1.0]]),
    # (1, 0), (-1, 1), (0, -1). p_0: <p_0, g_1> = -1, + 1/2 g_1 = (1/2, 1/2); <., g_2> = -1/2,
    # + 1/2 g_2. p_1: + g_0 = (0, 1); + g_2 = 0. p_2: <., g_0> = 0; <., g_1> = -1, + 1/2 g_1.
    # Sums: g_0: 1 + 1, g_1: 1/2 + 1 + 1/2, g_2: 1/2 + 1 + 1
    "PCGrad three": gram_case(
        PCGrad(),
        [[[1.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 1.0]], CONFLICT_AND_ZERO],
        [[2.0, 2.0, 2.5], [1.5, 2.0, 1.0]],
    ),
    # (2 + 2) / (4 + 2 + 4) = 0.4; the shorter gradient where they agree: <g_0, g_1> >= |g_0|^2
    "MGDA": gram_case(MGDA(), [CONFLICT, AGREE], [[0.4, 0.6], [1.0, 0.0]]),
    "MGDA opposed": gram_case(MGDA(), [OPPOSED, ZERO], [[0.5, 0.5], [0.5, 0.5]]),
    "MGDA one zero": gram_case(MGDA(), [ONE_ZERO, INF], [[1.0, 0.0], [1.0, 1.0]]),
    # orthogonal, squared norms 1, 2, 4: w ~ 1/1, 1/2, 1/4
    "MGDA three": gram_case(
        MGDA(),
        [[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 4.0]], CONFLICT_APART],
        [[4 / 7, 2 / 7, 1 / 7], [0.4, 0.0, 0.6]],
    ),
    # EVEN: w = (1/2, 1/2) by symmetry, g_w = g_0, weights (1 + c) / 2. AGREE: g_0 = (1, 1/2), and
    # <g_w, g_0> and |g_w| both grow from g_0 to g_1: w = (1, 0), c |g_0| / |g_w| = sqrt(1.25) / 2
    "CAGrad": gram_case(
        CAGrad(c=0.5), [EVEN, AGREE], [[0.75, 0.75], [0.5 + math.sqrt(1.25) / 2, 0.5]]
    ),
    "CAGrad mean": gram_case(CAGrad(c=0.0), [CONFLICT, AGREE], [[0.5, 0.5], [0.5, 0.5]]),
    # g_0 = (1/2, 1/2), |g_0|^2 = 1/2, <g_k, g_0> = (1, 0); c = sqrt(1/2), radius 1/2. With
    # w = (t, 1 - t): g_w = (3 t - 1, 1 - t), |g_w|^2 = 10 t^2 - 8 t + 2. The derivative of
    # t + |g_w| / 2 is 1 + (5 t - 2) / |g_w|, 0 where |g_w| = 2 - 5 t: 15 t^2 - 12 t + 2 = 0
    "CAGrad conflict": gram_case(
        CAGrad(c=math.sqrt(0.5)),
        [CONFLICT, EVEN],
        [
            [0.5 + 0.5 * T / (2 - 5 * T), 0.5 + 0.5 * (1 - T) / (2 - 5 * T)],
            [0.5 + 0.5 * math.sqrt(0.5), 0.5 + 0.5 * math.sqrt(0.5)],
        ],
    ),
    # g_0 = 0: the ball around it has radius 0
    "CAGrad opposed": gram_case(CAGrad(), [OPPOSED, NAN], [[0.5, 0.5], [1.0, 1.0]]),
    # a lone gradient: g_w = g_0, weight 1 + c
    "CAGrad one zero": gram_case(CAGrad(c=0.25), [ONE_ZERO, EVEN], [[1.25, 0.0], [0.625, 0.625]]),
    # v_0 = e_0 + 2/2 e_1, v_1 = e_1 + 2/4 e_0
    "UPGrad": gram_case(UPGrad(), [CONFLICT, AGREE], [[0.75, 1.0], [0.5, 0.5]]),
    "UPGrad opposed": gram_case(UPGrad(), [OPPOSED, ZERO], [[1.0, 1.0], [0.5, 0.5]]),
    "UPGrad one zero": gram_case(UPGrad(), [ONE_ZERO, INF], [[1.0, 0.0], [1.0, 1.0]]),
    # (1, 0), (-1, 1), (0, -1): only d = 0 conflicts with none: d_x >= 0, d_y >= d_x, d_y <= 0.
    # g_0 + g_1 + g_2 = 0 is the one way to 0: v_k = (1, 1, 1)
    "UPGrad three": gram_case(
        UPGrad(),
        [[[1.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 1.0]], CONFLICT_AND_ZERO],
        [[1.0, 1.0, 1.0], [0.75, 1.0, 0.0]],
    ),
    # diagonal: sqrt(1) (1/2, 1) / 2. The other has eigenvalues 8 of (1, 1), 2 of (1, -1): B (1, 1)
    # is sqrt(2 / 8) (1, 1)
    "AlignedMTL": gram_case(
        AlignedMTL(),
        [[[4.0, 0.0], [0.0, 1.0]], [[5.0, 3.0], [3.0, 5.0]]],
        [[0.25, 0.5], [0.25, 0.25]],
    ),
    # eigenvalues 2 of (1, -1), 0 of (1, 1): B (1/2, 1/2) = 0
    "AlignedMTL opposed": gram_case(AlignedMTL(), [OPPOSED, ZERO], [[0.0, 0.0], [0.5, 0.5]]),
    "AlignedMTL one zero": gram_case(AlignedMTL(), [ONE_ZERO, NAN], [[1.0, 0.0], [1.0, 1.0]]),
    "AlignedMTL three": gram_case(
        AlignedMTL(),
        [
            [[9.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 1.0]],
            [[5.0, 0.0, 3.0], [0.0, 0.0, 0.0], [3.0, 0.0, 5.0]],
        ],
        [[1 / 9, 1 / 6, 1 / 3], [0.25, 0.0, 0.25]],
    ),
    # a step has the weights of before its update; later ones are in test_balancer_gradnorm.py
    "GradNorm": gram_case(GradNorm(), [CONFLICT, AGREE], [1.0, 1.0], losses=[2.0, 1.0]),
    "GradNorm zeros": gram_case(GradNorm(), [ZERO, ONE_ZERO], [1.0, 1.0], losses=[0.0, 1.0]),
    "GradNorm nan": gram_case(GradNorm(), [NAN, AGREE], [1.0, 1.0], losses=[math.nan, 1.0]),
    # later epochs are in test_balancer_dwa.py
    "DWA": Case(DWA(), {"losses": [2.0, 0.5, 1.0]}, [1.0, 1.0, 1.0], num_losses=3),
    "DWA nan": Case(DWA(), {"losses": [math.nan, 0.0]}, [1.0, 1.0], num_losses=2),
    # exp(-0); later steps are in test_balancer_uncertainty.py
    "UncertaintyWeighting": Case(
        UncertaintyWeighting(), {"losses": [2.0, 0.5]}, [1.0, 1.0], num_losses=2
    ),
    "UncertaintyWeighting inf": Case(
        UncertaintyWeighting(), {"losses": [math.inf, 0.5]}, [1.0, 1.0], num_losses=2
    ),
    "Between": Case(
        Between(OGM(alpha=0.3, noise=1.0), stop=5),
        {"scores": [0.8, 0.4]},
        [1 - math.tanh(0.6), 1.0],
        [1.0, 1.0],
    ),
    "Between later": Case(
        Between(OGM(alpha=0.3, noise=1.0), start=2), {"scores": [0.8, 0.4]}, [1.0, 1.0], [0.0, 0.0]
    ),
    "Every": Case(
        Every(OGM(alpha=0.3), interval=3), {"scores": [0.8, 0.4]}, [1 - math.tanh(0.6), 1]
    ),
    "Smoothed": Case(
        Smoothed(OGM(alpha=0.3), decay=0.5), {"scores": [0.8, 0.4]}, [1 - math.tanh(0.6), 1.0]
    ),
    "Clipped": Case(Clipped(FixedWeights({"audio": 3.0, "visual": 0.1}), 0.5, 2.0), {}, [2.0, 0.5]),
    "nested": Case(
        Between(Smoothed(Every(OGM(alpha=0.3), 2), 0.9), 0, 10),
        {"scores": [0.8, 0.4]},
        [1 - math.tanh(0.6), 1.0],
    ),
}

BAD = [
    (lambda: OGM(alpha=math.nan), ValueError, "`alpha` is nan, allowed: finite and >= 0"),
    (lambda: OGM(alpha=-1), ValueError, "`alpha` is -1"),
    (lambda: OGM(noise=math.inf), ValueError, "`noise` is inf"),
    (lambda: OGM(alpha="1"), TypeError, "`alpha` is str"),
    (lambda: OGM(form="smooth"), ValueError, "`form` is 'smooth', allowed: 'jump', 'continuous'"),
    (lambda: MMPareto(0.0), ValueError, "`gamma` is 0.0, allowed: finite and > 0"),
    (lambda: MMPareto(math.nan), ValueError, "`gamma` is nan"),
    (lambda: CAGrad(1.0), ValueError, r"`c` is 1.0, allowed: \[0, 1\)"),
    (lambda: CAGrad(math.nan), ValueError, "`c` is nan"),
    (lambda: GradNorm(alpha=-0.5), ValueError, "`alpha` is -0.5, allowed: finite and >= 0"),
    (lambda: GradNorm(lr=0.0), ValueError, "`lr` is 0.0, allowed: finite and > 0"),
    (lambda: DWA(0.0), ValueError, "`temperature` is 0.0, allowed: finite and > 0"),
    (lambda: DWA(math.inf), ValueError, "`temperature` is inf"),
    (lambda: UncertaintyWeighting(-1), ValueError, "`lr` is -1, allowed: finite and > 0"),
    (lambda: FixedWeights({"audio": -1.0}), ValueError, r"`weights\['audio'\]` is -1.0"),
    (lambda: FixedWeights({"audio": math.nan}), ValueError, r"`weights\['audio'\]` is nan"),
    (lambda: Between(OGM(), 3, 3), ValueError, "`stop` is 3, allowed: > `start` = 3"),
    (lambda: Between(OGM(), -1), ValueError, "`start` is -1"),
    (
        lambda: Between(OGM(), unit="batch"),
        ValueError,
        "`unit` is 'batch', allowed: 'step', 'epoch'",
    ),
    (lambda: Every(OGM(), 0), ValueError, "`interval` is 0"),
    (lambda: Smoothed(OGM(), 1.0), ValueError, "`decay` is 1.0"),
    (lambda: Smoothed(OGM(), math.nan), ValueError, "`decay` is nan"),
    (lambda: Clipped(OGM(), 2, 1), ValueError, "`low`, `high` are 2, 1"),
    (lambda: Clipped(OGM(), math.nan), ValueError, "`low`, `high` are nan"),
]
