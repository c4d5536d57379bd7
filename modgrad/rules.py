"""Balancing rules: the formulas that kernels know too, from what was measured to weights.

Each is one function on tensors here, which is its definition, and one in csrc/rules.h. All compute
in float64 and round once. Shape letters: M modalities, K losses.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

SMALLEST = 1e-3  # a weight of GradNorm stays positive: at 0 a loss would be off, and its G_k 0
OPPOSED = 1e-8  # |h|^2 / (|g|^2 + |u|^2): a shorter h is rounding, and lambda would be over 1e4


class Rule(NamedTuple):
    """A balancer's formula by name, with its hyperparameters: what an op can be told to do.

    ``OGM(alpha=0.8).rule`` is one. The names and their parameters are those of ``RULES``.
    """

    name: str
    parameters: tuple[float, ...] = ()


State = tuple[Tensor, ...]


class Kind(NamedTuple):
    """What there is to know of a rule besides its formula."""

    weights: Callable[..., tuple[Tensor, State]]
    reads: Literal["scores", "gram"]
    num_parameters: int
    num_states: int = 0  # float32 [K] each; a rule that has them reads the losses too
    compares_losses: bool = False  # it has at least 2; the others have one
    weighs_losses: bool = False  # one row for all modalities, and for shared parameters


def check(rule: Rule) -> Kind:
    """The rule's kind.

    Raises:
        TypeError: it is no rule, but a balancer, say.
        ValueError: there is no such rule, or it has another number of parameters.
    """
    if not isinstance(rule, Rule):
        kind_found = type(rule).__name__
        hint = f"{kind_found}(…).rule" if hasattr(rule, "rule") else "modgrad.OGM(…).rule"
        raise TypeError(f"`rule` is {kind_found}, allowed: a Rule, such as {hint}")
    if rule.name not in RULES:
        raise ValueError(f"`rule` is {rule.name!r}, allowed: {', '.join(RULES)}")
    kind = RULES[rule.name]
    if len(rule.parameters) != kind.num_parameters:
        found = f"{len(rule.parameters)} parameters"
        raise ValueError(f"`rule` {rule.name!r} has {found}, allowed: {kind.num_parameters}")
    return kind


def weights(
    rule: Rule, statistic: Tensor, losses: Tensor | None = None, state: State = ()
) -> tuple[Tensor, State]:
    """The weights, float32 [M, K], and the next state.

    Args:
        statistic: scores [M], or a gram [M, K, K].
        losses: [K], where the rule reads them.
        state: float32 [K] tensors; the new ones are others, nothing changes in place.
    """
    kind = RULES[rule.name]
    more: tuple[Any, ...] = (
        (losses.double(), *state) if kind.num_states and losses is not None else ()
    )
    found, new = kind.weights(statistic.double(), *more, *rule.parameters)
    K = 1 if kind.reads == "scores" else statistic.shape[-1]
    return found.broadcast_to(len(statistic), K).float(), new


def _ogm(s: Tensor, alpha: float, continuous: float) -> tuple[Tensor, State]:
    ratios = (s[:, None] / s[None, :]).fill_diagonal_(0)  # [m, n]: s_m / s_n
    rho = ratios.sum(1) / (s.numel() - 1)
    # inf, the ratio to a score of 0, becomes a number: alpha = 0 times inf has no tanh
    lead = (rho - 1 if continuous else rho).clamp(max=torch.finfo(torch.float32).max)
    return torch.where(rho > 1, 1 - torch.tanh(alpha * lead), 1.0)[:, None], ()


def _equal_norms(gram: Tensor, power: float, cap: float) -> tuple[Tensor, State]:
    norms = gram[:, 0, 0].sqrt()
    there = norms > 0
    mean = torch.where(there, norms, 0.0).sum() / there.sum()
    found = (mean / norms).pow(power).clamp(1 / cap, cap)
    return torch.where(there & norms.isfinite().all(), found, 1.0)[:, None], ()


def _mmpareto(gram: Tensor, gamma: float) -> tuple[Tensor, State]:
    encoder = torch.arange(len(gram), device=gram.device)
    k0 = mmpareto_share(gram, encoder)
    scale = 2 * gamma * mmpareto_lambda(gram, encoder, k0)
    return or_plain(mmpareto_weights(scale, k0), gram), ()


def mmpareto_weights(scale: Tensor, k0: Tensor) -> Tensor:
    """[M, M + 1]: ``scale k0`` for loss 0, ``scale (1 - k0)`` for m's own, 1 for the others."""
    own = torch.diag_embed(scale * (1 - k0) - 1) + 1
    return torch.cat([(scale * k0)[:, None], own], 1)


def mmpareto_share(gram: Tensor, encoder: Tensor) -> Tensor:
    """k0 [M]: 1/2 where joint and unimodal gradient agree, else that of the min-norm point."""
    gg, gu, uu = _products(gram, encoder)
    agree = (gu > 0) | (gg <= 0) | (uu <= 0)
    return torch.where(agree, 0.5, ((uu - gu) / (gg - 2 * gu + uu)).clamp(0, 1))


def mmpareto_lambda(gram: Tensor, encoder: Tensor, k0: Tensor) -> Tensor:
    """``max(1, |g + u| / |h|)`` of encoders, or of tensors; ``encoder`` says whose."""
    gg, gu, uu = _products(gram, encoder)
    k1 = 1 - k0
    h_sq = 4 * (k0 * k0 * gg + 2 * k0 * k1 * gu + k1 * k1 * uu)
    ratio = torch.where(h_sq > OPPOSED * (gg + uu), (gg + 2 * gu + uu) / h_sq, 1.0)
    return ratio.clamp(min=1).sqrt()


def _products(gram: Tensor, encoder: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """<g, g>, <g, u>, <u, u> from the gram of each encoder or tensor."""
    u = encoder[:, None] + 1
    own = gram.diagonal(dim1=1, dim2=2).gather(1, u)
    return gram[:, 0, 0], gram[:, 0].gather(1, u).squeeze(1), own.squeeze(1)


def _pcgrad(gram: Tensor) -> tuple[Tensor, State]:
    K = gram.shape[-1]
    eye = torch.eye(K, dtype=gram.dtype, device=gram.device)
    p = eye.expand_as(gram)  # p[m, i]: the projected gradient i in terms of the gradients
    for j in range(K):
        along = (p @ gram[:, :, j, None]).squeeze(-1)  # [M, K]: <p_i, g_j>
        sq_norm = gram[:, j, j, None]
        against = (along < 0) & (sq_norm > 0) & (eye[j] == 0)
        p = p - torch.where(against, along / sq_norm, 0.0)[..., None] * eye[j]
    return or_plain(p.sum(1), gram), ()


def _gradnorm(
    gram: Tensor, losses: Tensor, w: Tensor, initial: Tensor, alpha: float, lr: float
) -> tuple[Tensor, State]:
    recorded = (initial > 0) | ~(losses.isfinite() & (losses > 0))
    first = torch.where(recorded, initial, losses.float())
    norms = gram.diagonal(dim1=1, dim2=2).sum(0).sqrt()  # [K]
    G = w * norms
    ratios = losses / first
    target = G.mean() * (ratios / ratios.mean()) ** alpha
    stepped = (w - lr * (G - target).sign() * norms).clamp(min=SMALLEST)
    stepped = stepped * (losses.numel() / stepped.sum())
    usable = (stepped.isfinite() & target.isfinite()).all()
    return w, (torch.where(usable, stepped, w.double()).float(), first)


def is_finite(gram: Tensor) -> Tensor:
    """bool [M]"""
    return gram.isfinite().flatten(-2).all(-1)


def or_plain(weights: Tensor, gram: Tensor) -> Tensor:
    """``weights`` as float32 [M, K], 1 where the gram of the modality is not finite."""
    return torch.where(is_finite(gram)[:, None], weights, 1.0).float()


RULES = {
    "ogm": Kind(_ogm, "scores", 2),
    "equal_norms": Kind(_equal_norms, "gram", 2),
    "mmpareto": Kind(_mmpareto, "gram", 1, compares_losses=True),
    "pcgrad": Kind(_pcgrad, "gram", 0, compares_losses=True),
    "gradnorm": Kind(_gradnorm, "gram", 2, num_states=2, compares_losses=True, weighs_losses=True),
}
