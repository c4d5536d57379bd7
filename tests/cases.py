"""The table that drives tests/test_balancers.py: a row for every balancer."""

import math
from typing import Any, NamedTuple

from modgrad.balancers import (
    AGM,
    DWA,
    MGDA,
    OGM,
    PMR,
    AlignedMTL,
    Between,
    CAGrad,
    Clipped,
    ConditionalLearningSpeed,
    EqualNorms,
    Every,
    FixedLossWeights,
    FixedWeights,
    GradientBlending,
    GradNorm,
    MMPareto,
    PCGrad,
    RandomRebalancing,
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
    tensor_scale: list[float] | None = None  # [M]: one tensor a modality


def gram_case(balancer, gram, weights, losses=None):
    statistics = {"gram": gram} if losses is None else {"gram": gram, "losses": losses}
    return Case(balancer, statistics, weights, num_losses=len(gram[0]))


def mmpareto(gram, weights, gamma=1.5):
    return gram_case(MMPareto(gamma), gram, weights)._replace(loss_per_modality=True)


def per_tensor(gram, weights, scale, gamma=1.5):
    case = mmpareto(gram, weights)._replace(tensor_scale=scale)
    both = {"gram": gram, "tensor_gram": gram}
    return case._replace(balancer=MMPareto(gamma, per_tensor=True), statistics=both)


def pmr(scores, weights, modalities=("audio", "visual"), **options):
    return Case(
        PMR(**options),
        {"scores": scores},
        weights,
        modalities=modalities,
        num_losses=len(weights),
        loss_per_modality=True,
    )


FUSION = {"audio": "audio_fusion", "visual": "visual_fusion"}
BRANCHES = ("audio", "visual", "audio_fusion", "visual_fusion", "squeeze", "head")


def speed_case(grads, params, **options):
    """The first step is regular, of weight 1; later ones are in a file of their own."""
    return Case(
        ConditionalLearningSpeed(FUSION, shared="squeeze", **options),
        {"grad_sq_norms": grads, "param_sq_norms": params},
        [1.0] * 6,
        modalities=BRANCHES,
    )


def random_case(weights, seed, **options):
    return Case(RandomRebalancing(FUSION, seed=seed, **options), {}, weights, modalities=BRANCHES)


T = (6 - math.sqrt(6)) / 15  # see "CAGrad conflict"

CASES = {
    # r = exp(2 (1 - s)) = (e, 1 / e), tau = 1; later steps are in test_balancer_agm.py
    "AGM": Case(
        AGM(), {"response_losses": [0.5, 1.5]}, [math.exp(1 - math.e), math.exp(1 - 1 / math.e)]
    ),
    # M / (M - 1) (mean - s) = (-1.5, 1.5, 0)
    "AGM three": Case(
        AGM(alpha=0.5),
        {"response_losses": [3.0, 1.0, 2.0]},
        [math.exp(0.5 - 0.5 * math.exp(-1.5)), math.exp(0.5 - 0.5 * math.exp(1.5)), 1.0],
        modalities=THREE,
    ),
    # r = (e^18, e^-18) = (6.6e7, 1.5e-8)
    "AGM capped": Case(
        AGM(alpha=2.0, cap=5.0), {"response_losses": [0.0, 18.0]}, [math.exp(-10), math.exp(2)]
    ),
    "AGM zeros": Case(AGM(), {"response_losses": [0.0, 0.0]}, [1.0, 1.0]),
    "AGM nan": Case(AGM(), {"response_losses": [0.5, math.nan]}, [1.0, 1.0]),
    "AGM inf": Case(AGM(), {"response_losses": [math.inf, 0.5]}, [1.0, 1.0]),
    "AGM huge": Case(AGM(), {"response_losses": [3e38, 0.0]}, [math.e, math.exp(-10)]),
    "AGM alpha zero": Case(AGM(alpha=0.0), {"response_losses": [0.0, 18.0]}, [1.0, 1.0]),
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
    # norms 1 and 3, mean 2
    "EqualNorms": Case(EqualNorms(), {"grad_sq_norms": [1.0, 9.0]}, [2.0, 2 / 3]),
    "EqualNorms halfway": Case(
        EqualNorms(power=0.5), {"grad_sq_norms": [1.0, 9.0]}, [2**0.5, (2 / 3) ** 0.5]
    ),
    "EqualNorms capped": Case(EqualNorms(cap=1.2), {"grad_sq_norms": [1.0, 9.0]}, [1.2, 1 / 1.2]),
    # the one without a gradient does not count in the mean
    "EqualNorms one zero": Case(
        EqualNorms(), {"grad_sq_norms": [0.0, 1.0, 9.0]}, [1.0, 2.0, 2 / 3], modalities=THREE
    ),
    "EqualNorms nan": Case(EqualNorms(), {"grad_sq_norms": [math.nan, 9.0]}, [1.0, 1.0]),
    "FixedWeights": Case(FixedWeights({"visual": 0.25}), {}, [1.0, 0.25]),
    "FixedWeights three": Case(
        FixedWeights({"text": 3.0, "audio": 0.0}), {}, [0.0, 1.0, 3.0], modalities=THREE
    ),
    "FixedLossWeights": Case(FixedLossWeights((1.0, 0.0, 2.5)), {}, [1.0, 0.0, 2.5], num_losses=3),
    # lag = (0.5 / 0.8, 0.8 / 0.5) = (0.625, 1.6)
    "PMR": pmr([0.8, 0.5], [1.0, 0.0, 0.6]),
    "PMR far behind": pmr([0.1, 0.3], [1.0, 2.0, 0.0], alpha=2.0),
    "PMR equal": pmr([0.5, 0.5], [1.0, 0.0, 0.0, 0.0, 0.0], entropy=0.1),
    "PMR zero": pmr([0.5, 0.0], [1.0, 0.0, 1.0]),
    "PMR zeros": pmr([0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0], entropy=0.1),
    "PMR nan": pmr([0.5, math.nan], [1.0, 0.0, 0.0, 0.0, 0.0], entropy=0.1),
    "PMR inf": pmr([math.inf, 0.5], [1.0, 0.0, 1.0]),
    "PMR entropy": pmr([0.8, 0.5], [1.0, 0.0, 0.3, -0.1, 0.0], alpha=0.5, entropy=0.1),
    "PMR no epoch": pmr([0.8, 0.5], [1.0, 0.0, 0.6, 0.0, 0.0], entropy=0.1, entropy_epochs=0),
    # lag = ((1/2 + 1/4) / 2, (2 + 1/2) / 2, (4 + 2) / 2) = (0.375, 1.25, 3)
    "PMR three": pmr(
        [0.8, 0.4, 0.2], [1.0, 0.0, 0.125, 0.5, -0.1, 0.0, 0.0], THREE, alpha=0.5, entropy=0.1
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
    # as above, lambda apart; tensors of their own are in test_balancer_mmpareto.py
    "MMPareto per tensor": per_tensor(
        [CONFLICT_AND_ZERO, AGREE_APART],
        [[1.2, 1.8, 1.0], [1.5, 1.0, 1.5]],
        [math.sqrt(1.25), 1.0],
    ),
    "MMPareto per tensor opposed": per_tensor(
        [[[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0] * 3], [[0.0] * 3] * 3],
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]],
        [1.0, 1.0],
        gamma=1.0,
    ),
    "MMPareto per tensor nan": per_tensor(
        [NAN_THREE, CONFLICT_APART], [[1.0, 1.0, 1.0], [1.2, 1.0, 1.8]], [1.0, math.sqrt(1.25)]
    ),
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
    "GradientBlending": Case(GradientBlending(), {}, [1 / 3] * 3, num_losses=3),
    "GradientBlending mapping": Case(
        GradientBlending({"visual": 0.5, "joint": 0.25, "audio": 0.0}),
        {},
        [0.25, 0.0, 0.5],
        num_losses=3,
        loss_per_modality=True,
    ),
    "GradientBlending sequence": Case(
        GradientBlending((0.4, 0.3, 0.2, 0.1)),
        {},
        [0.4, 0.3, 0.2, 0.1],
        modalities=THREE,
        num_losses=4,
    ),
    "ConditionalLearningSpeed": speed_case([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0] * 6),
    "ConditionalLearningSpeed freeze": speed_case([1.0] * 6, [2.0] * 6, remedy="freeze"),
    "ConditionalLearningSpeed zeros": speed_case([0.0] * 6, [0.0] * 6, remedy="freeze"),
    "ConditionalLearningSpeed inf": speed_case([math.inf] * 6, [1.0] * 6, remedy="freeze"),
    "ConditionalLearningSpeed nan": speed_case([math.nan] * 6, [1.0] * 6, remedy="freeze"),
    # seed 0 begins with a regular step, 1 with audio, 5 with visual
    "RandomRebalancing": random_case([1.0] * 6, seed=5),
    "RandomRebalancing regular": random_case([1.0] * 6, seed=0, remedy="freeze"),
    "RandomRebalancing audio": random_case([1.0, 0.0, 1.0, 0.0, 1.0, 1.0], 1, remedy="freeze"),
    "RandomRebalancing visual": random_case([0.0, 1.0, 0.0, 1.0, 1.0, 1.0], 5, remedy="freeze"),
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
    (lambda: AGM(alpha=-1.0), ValueError, "`alpha` is -1.0, allowed: finite and >= 0"),
    (lambda: AGM(alpha=math.nan), ValueError, "`alpha` is nan"),
    (lambda: AGM(alpha="1"), TypeError, "`alpha` is str, allowed: a number"),
    (lambda: AGM(cap=0.0), ValueError, "`cap` is 0.0, allowed: finite and > 0"),
    (lambda: AGM(cap=math.inf), ValueError, "`cap` is inf"),
    (lambda: AGM(alpha=9.0), ValueError, "`alpha` times `cap` is 90.0, allowed: at most 88"),
    (lambda: EqualNorms(power=0.0), ValueError, r"`power` is 0.0, allowed: \(0, 1\]"),
    (lambda: EqualNorms(cap=0.5), ValueError, "`cap` is 0.5, allowed: finite and >= 1"),
    (lambda: OGM(alpha=math.nan), ValueError, "`alpha` is nan, allowed: finite and >= 0"),
    (lambda: OGM(alpha=-1), ValueError, "`alpha` is -1"),
    (lambda: OGM(noise=math.inf), ValueError, "`noise` is inf"),
    (lambda: OGM(alpha="1"), TypeError, "`alpha` is str"),
    (lambda: OGM(form="smooth"), ValueError, "`form` is 'smooth', allowed: 'jump', 'continuous'"),
    (lambda: PMR(alpha=-1.0), ValueError, "`alpha` is -1.0, allowed: finite and >= 0"),
    (lambda: PMR(entropy=math.nan), ValueError, "`entropy` is nan"),
    (lambda: PMR(entropy_epochs=-1), ValueError, "`entropy_epochs` is -1, allowed: >= 0, or None"),
    (lambda: FixedLossWeights((1.0,)), ValueError, r"`weights` is \(1.0,\), allowed: at least two"),
    (lambda: FixedLossWeights((1.0, -1.0)), ValueError, r"`weights\[1\]` is -1.0"),
    (lambda: MMPareto(0.0), ValueError, "`gamma` is 0.0, allowed: finite and > 0"),
    (lambda: MMPareto(math.nan), ValueError, "`gamma` is nan"),
    (lambda: CAGrad(1.0), ValueError, r"`c` is 1.0, allowed: \[0, 1\)"),
    (lambda: CAGrad(math.nan), ValueError, "`c` is nan"),
    (lambda: GradNorm(alpha=-0.5), ValueError, "`alpha` is -0.5, allowed: finite and >= 0"),
    (lambda: GradNorm(lr=0.0), ValueError, "`lr` is 0.0, allowed: finite and > 0"),
    (lambda: DWA(0.0), ValueError, "`temperature` is 0.0, allowed: finite and > 0"),
    (lambda: DWA(math.inf), ValueError, "`temperature` is inf"),
    (lambda: UncertaintyWeighting(-1), ValueError, "`lr` is -1, allowed: finite and > 0"),
    (lambda: ConditionalLearningSpeed({"audio": "a"}), ValueError, r"`fusion` has \['audio'\]"),
    (
        lambda: ConditionalLearningSpeed({"audio": "f", "visual": "f"}),
        ValueError,
        r"`fusion` names \['audio', 'visual', 'f', 'f'\], allowed: different groups",
    ),
    (
        lambda: ConditionalLearningSpeed(FUSION, shared="audio"),
        ValueError,
        "`shared` is 'audio', allowed: a group not in `fusion`",
    ),
    (
        lambda: ConditionalLearningSpeed(FUSION, remedy="stop"),
        ValueError,
        "`remedy` is 'stop', allowed: 'gates', 'freeze'",
    ),
    (
        lambda: ConditionalLearningSpeed(FUSION, tolerance=math.nan),
        ValueError,
        "`tolerance` is nan, allowed: finite and >= 0",
    ),
    (lambda: ConditionalLearningSpeed(FUSION, window=0), ValueError, "`window` is 0"),
    (lambda: ConditionalLearningSpeed(FUSION, warm_up=-1), ValueError, "`warm_up` is -1"),
    (lambda: ConditionalLearningSpeed(FUSION, decay=0.0), ValueError, r"`decay` is 0.0.*\(0, 1\]"),
    (lambda: RandomRebalancing(FUSION, seed=-1), ValueError, r"`seed` is -1, allowed: \[0, 2\^63"),
    (lambda: GradientBlending((1.0, -1.0, 1.0)), ValueError, r"`weights\[1\]` is -1.0, allowed"),
    (
        lambda: GradientBlending({"joint": math.inf}),
        ValueError,
        r"`weights\['joint'\]` is inf, allowed: finite and >= 0",
    ),
    (lambda: GradientBlending([0.0, 0.0]), ValueError, r"is \[0.0, 0.0\], allowed: at least one"),
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
