"""The table that drives tests/test_balancers.py: a row for every balancer."""

import math
from typing import Any, NamedTuple

from modgrad.balancers import OGM, Between, Clipped, Every, FixedWeights, Smoothed

THREE = ("audio", "visual", "text")


class Case(NamedTuple):
    """A balancer, and weights computed by hand for its first step."""

    balancer: Any
    statistics: dict[str, list[float]]  # fields of Statistics
    weights: list[float]  # [M]
    noise: list[float] | None = None
    modalities: tuple[str, ...] = ("audio", "visual")


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
    "FixedWeights": Case(FixedWeights({"visual": 0.25}), {}, [1.0, 0.25]),
    "FixedWeights three": Case(
        FixedWeights({"text": 3.0, "audio": 0.0}), {}, [0.0, 1.0, 3.0], modalities=THREE
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
