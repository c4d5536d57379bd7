"""How long a deep linear network learns from one modality alone: closed forms.

Source of all formulas: Zhang, Latham and Saxe, Understanding Unimodal Bias in Multimodal Deep
Linear Networks, ICML 2024. Those for a finite learning rate and for weights are our own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from modgrad.theory.caveats import caveats
from modgrad.theory.statistics import Array, SecondOrder

_NODES = 256  # of the quadrature: the integrand is a product of powers, smooth in log u


@dataclass(frozen=True, eq=False)
class UnimodalPhase:
    """What is learned first, and how long the other modality waits.

    Times are in steps where a learning rate was given, else in units of 1 / learning rate.
    """

    first: str
    """The modality of the largest |Sigma_yx|, times its weight."""
    second: str
    t_first: float
    """Until the first modality reaches half of its plateau; inf never occurs."""
    wait: float
    """From then until the second reaches half of its own; inf where it is never learned."""
    ratio: float
    """t_second / t_first, 1 without a unimodal phase, inf where the second is never learned."""
    strengths: dict[str, float]
    """|Sigma_yx| of each modality: its speed at the start."""
    residual_strength: float
    """Of the second, once the first has explained what it can: its speed in the phase."""
    loss_alone: dict[str, float]
    """By how much each modality alone can lower the loss."""
    misattribution: Array
    """[D_first, K]: the first modality's weights in the unimodal phase less those at the end."""
    warnings: tuple[str, ...]
    """Where the theory does not hold, and what that does to the numbers."""

    @property
    def superficial(self) -> bool:
        """The modality learned first is the one that lowers the loss less."""
        return self.loss_alone[self.second] > self.loss_alone[self.first] * (1 + 1e-9)

    @property
    def permanent(self) -> bool:
        """The second modality is never learned: the first leaves it nothing."""
        return self.ratio == math.inf

    def __str__(self) -> str:
        lines = [f"{self.first} is learned first, at t = {self.t_first:.4g}"]
        if self.permanent:
            lines[0] += f"; {self.second} is never learned"
        else:
            lines[0] += f"; {self.second} waits {self.wait:.4g} longer: {self.ratio:.3g} times"
        if self.superficial:
            lines.append(f"superficial: {self.second} alone would lower the loss more")
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])


def predict_unimodal_phase(
    data: SecondOrder | Mapping[str, Any],
    targets: Any = None,
    *,
    depth: int,
    fusion_layer: int,
    init: float,
    lr: float | None = None,
    initialise: Literal["balanced", "random"] = "balanced",
    linear: bool = True,
    weights: Mapping[str, float] | None = None,
) -> UnimodalPhase:
    """Which modality a deep linear network learns first, and for how long alone.

    The loss is 1/2 E|y - f(x)|^2, the training full-batch gradient descent. With A first,

        w_A = |Sigma_yxA|,  w_B = |Sigma_yxB|,  k = w_B / w_A,  P = |Sigma_yxA Sigma_A^-1|
        w'_B = |Sigma_yxB - Sigma_yxA Sigma_A^-1 Sigma_AB|
        late fusion:  t_A = u^(2-L) / ((L-2) w_A), or ln(1/u) / w_A for L = 2
                      t_B / t_A = 1 + (w_A - w_B) / w'_B
        intermediate: t_A = integral from u to 1 of dv / (w_A v^(F-1) (v^2 + v_B^2)^((L-F)/2))
                      t_B - t_A = u^(2-F) (1-k) P^(F/L-1) / ((F-2) w'_B), or ln(1/u) for the
                      power and the (F-2) where F = 2
        early fusion: t_B = t_A

    with L the depth, F the fusion layer, u the initial norm, and v_B(v) what B's layers have grown
    to. With a learning rate and L = 2, ln(1 + lr w) replaces lr w. Covariances without an inverse
    have their pseudo-inverse. Where learning A reverses what draws B, w_B counts as negative.

    Args:
        data: statistics, or features [N, D_m] by modality with ``targets``; exactly two.
        targets: [N] or [N, K].
        depth: L, the number of layers, >= 2.
        fusion_layer: F, the layer that first sees both modalities: 1 early, L late.
        init: u, the norm of each modality's layers at the start, in (0, 1); shared layers have
            sqrt(2) times that.
        lr: learning rate; None is gradient flow.
        initialise: "random" warns where only the balanced initialisation obeys the formulas.
        linear: False says that the network is none, which warns.
        weights: factors of the gradients in each modality's layers, > 0, as ``FixedWeights``
            has: they multiply w_A, w_B and w'_B. For late fusion.

    Raises:
        ValueError: an argument out of range; data that are not finite or do not fit together; a
            target that no modality correlates with.
    """
    if not isinstance(data, SecondOrder):
        if targets is None:
            raise ValueError("`targets` is None, allowed: [N] or [N, K], to go with features")
        data = SecondOrder.of_samples(data, targets)
    elif targets is not None:
        raise ValueError("`targets` comes with statistics, allowed: None, they are in there")
    check_network(depth, fusion_layer)
    if not 0 < init < 1:
        raise ValueError(f"`init` is {init}, allowed: (0, 1)")
    if lr is not None and not 0 < lr < math.inf:
        raise ValueError(f"`lr` is {lr}, allowed: > 0 and finite, or None")
    if initialise not in ("balanced", "random"):
        raise ValueError(f"`initialise` is {initialise!r}, allowed: 'balanced', 'random'")
    factor = _factors(data, weights, depth == fusion_layer)

    strengths = {m: float(np.linalg.norm(data.cross[data.rows(m)])) for m in data.modalities}
    speed = {m: factor[m] * strength for m, strength in strengths.items()}
    first, second = sorted(data.modalities, key=lambda m: -speed[m])  # stable: ties in order
    if speed[first] == 0:
        raise ValueError("`data` has a target that correlates with no modality: nothing to learn")
    residual = float(np.linalg.norm(data.residual(first, second)))
    plateau = data.alone(first)
    P = float(np.linalg.norm(plateau))
    # turned: the second's weights shrink before they grow, at the same speed
    growth = -speed[second] if data.turned(first, second) else speed[second]
    rates = (speed[first], growth, factor[second] * residual)
    t_first, wait = _times(depth, fusion_layer, init, P, *rates, lr)
    return UnimodalPhase(
        first,
        second,
        t_first,
        wait,
        1 + wait / t_first,
        strengths,
        residual,
        {m: float((data.cross[data.rows(m)] * data.alone(m)).sum() / 2) for m in data.modalities},
        plateau - data.solution[data.rows(first)],
        caveats(data, depth, fusion_layer, init, lr, initialise, linear, first, P, rates),
    )


def check_network(depth: int, fusion_layer: int) -> None:
    if depth < 2:
        raise ValueError(f"`depth` is {depth}, allowed: >= 2")
    if not 1 <= fusion_layer <= depth:
        raise ValueError(f"`fusion_layer` is {fusion_layer}, allowed: 1 to {depth}, the depth")


def _factors(
    data: SecondOrder, weights: Mapping[str, float] | None, late: bool
) -> dict[str, float]:
    given = dict(weights or {})
    if given and not late:
        raise ValueError("`weights` is given, allowed: None unless fusion is late")
    for name, weight in given.items():
        if name not in data.sizes:
            raise ValueError(f"`weights` names {name!r}, allowed: {', '.join(data.sizes)}")
        if not 0 < weight < math.inf:
            raise ValueError(f"`weights[{name!r}]` is {weight}, allowed: > 0 and finite")
    return {name: float(given.get(name, 1.0)) for name in data.sizes}


def _times(
    L: int, F: int, u: float, P: float, w_A: float, w_B: float, w_left: float, lr: float | None
) -> tuple[float, float]:
    """t_A and t_B - t_A."""
    if F == 1:
        never = w_B == 0 and w_left == 0
        return _growth_time(L, F, u, w_A, abs(w_B)) / (lr or 1), math.inf if never else 0.0
    if L == 2 and lr is not None:
        w_A, w_B, w_left = (math.log1p(max(lr * w, -0.5)) for w in (w_A, w_B, w_left))
    elif lr is not None:
        w_A, w_B, w_left = (lr * w for w in (w_A, w_B, w_left))
    span = math.log(1 / u) if F == 2 else u ** (2 - F) / (F - 2)
    t_A = span / w_A if L == F else _growth_time(L, F, u, w_A, w_B)
    if w_left == 0:
        return t_A, math.inf
    return t_A, span * (1 - w_B / w_A) * P ** (F / L - 1) / w_left


def _growth_time(L: int, F: int, u: float, w_A: float, w_B: float) -> float:
    """The integral of intermediate fusion, and of early (F = 1), by quadrature in log v."""
    x, weight = np.polynomial.legendre.leggauss(_NODES)
    half = math.log(1 / u) / 2
    log_v = half * (x - 1)
    k, log_u = w_B / w_A, math.log(u)
    if F == 2:
        log_v_B = k * log_v + (1 - k) * log_u
    else:
        log_v_B = np.log(k * np.exp((2 - F) * (log_v - log_u)) + (1 - k)) / (2 - F) + log_u
    squares = np.logaddexp(2 * log_v, 2 * log_v_B)
    integrand = np.exp((2 - F) * log_v - (L - F) / 2 * squares)
    return float(half * (weight * integrand).sum() / w_A)
