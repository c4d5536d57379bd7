"""What each modality contributes to the accuracy and to the logits: Shapley values over a loader.

Shape letters: M modalities, B batch, C classes, S sets of modalities.
"""

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from modgrad.diagnostics.loaders import (
    Tally,
    batches,
    checked_logits,
    evaluating,
    last_of,
    several_names,
    targets_of,
)
from modgrad.responses import mono_modal_responses

MOST_EXACT = 6
"""Modalities of which every set is tried: 63 forward passes a batch; above, orders are sampled."""


@dataclass(frozen=True)
class Attribution:
    """What ``attributions`` finds, by modality."""

    accuracy: dict[str, float]
    """Contribution to the accuracy; they sum to ``joint - baseline``."""
    error: dict[str, float]
    """Standard error of `accuracy` over samples."""
    sampling_error: dict[str, float]
    """Its standard error over the sampled orders; 0 where all sets were tried."""
    margin: dict[str, float]
    """Contribution to how far the true class's logit is above the mean of all."""
    response_accuracy: dict[str, float]
    """Accuracy of each mono-modal response, the modality's share of the logits, alone."""
    joint: float
    """Accuracy with all modalities."""
    baseline: float
    """Accuracy with none: the share of the most frequent class."""
    samples: int

    def shares(self) -> dict[str, float]:
        """`accuracy` as parts of their sum; all 0 where the network is no better than baseline."""
        total = self.joint - self.baseline
        return {m: a / total if total > 0 else 0.0 for m, a in self.accuracy.items()}


def attributions(
    forward: Callable[[Any, frozenset[str]], Tensor],
    loader: Iterable[Any],
    modalities: Iterable[str],
    *,
    targets: Callable[[Any], Tensor] = last_of,
    model: nn.Module | None = None,
    orders: int = 32,
    seed: int = 0,
    progress: bool = True,
    process_group: ProcessGroup | None = None,
) -> Attribution:
    """Each modality's Shapley share of the accuracy and of the logits.

        phi_m = sum over S without m of |S|! (M - |S| - 1)! / M! (v(S + m) - v(S))

    v(S) is the accuracy over the loader with the modalities of S present, and v(none) the share of
    the most frequent class; for logits v(S) = f(S), and f(none) = 0 as in ``mono_modal_responses``.
    2^M - 1 forward passes a batch up to 6 modalities; above, phi is a mean over random orders in
    which the modalities join, the same for all batches and ranks. One host read.

    Args:
        forward: from a batch and the present modalities to logits [B, C]: the others' inputs are
            zeros (``modgrad.masked``), or their features are means (``FeatureMeans.fill``).
        loader: of held-out batches, at least one on each rank.
        modalities: at least 2 names, or a ``Modalities``.
        targets: from a batch to its classes, int [B]; by default its last item.
        model: put into eval mode, and back.
        orders: how many are sampled above 6 modalities, at least 2.
        seed: of the orders.
        progress: a bar, where rich is installed.
        process_group: the ranks over which samples are counted together; None means all.

    Raises:
        ValueError: fewer than two modalities; no samples; targets out of range; logits that are not
            finite; shapes.

    Source: Li et al., Boosting Multi-modal Model Performance with Adaptive Gradient Modulation,
    ICCV 2023, for responses; the baseline of the accuracy is our own: with 0, a modality of noise
    would be credited with half of chance.
    """
    names = several_names(modalities)
    M = len(names)
    if orders < 2:
        raise ValueError(f"`orders` is {orders}, allowed: at least 2")
    drawn = None if M <= MOST_EXACT else _draw(names, orders, seed)
    coefficient = _exact(names) if drawn is None else _sampled(names, drawn)
    tally, everything, C = Tally(), frozenset(names), 0
    with evaluating(model):
        for batch in batches(loader, "attributions", progress):
            first = checked_logits(forward(batch, everything), "forward")
            y, C = targets_of(batch, targets, first), first.shape[1]
            right, margins = [], first.new_zeros(M, len(first))
            responses = first.new_zeros(M, *first.shape)
            for present, row in coefficient.items():
                logits = first if present == everything else _same(forward, batch, present, first)
                c = row.to(logits.device)
                right.append((logits.argmax(1) == y).double())
                margins = margins + c[:, None] * _margin(logits, y)
                responses = responses + c[:, None, None] * logits
            hits = torch.stack(right)
            weights = torch.stack(list(coefficient.values()), 1).to(hits.device)
            phi = (weights[:, :, None] * hits).sum(1)
            of_responses = (responses.argmax(2) == y).double()
            classes = (y == torch.arange(C, device=y.device)[:, None]).double()
            tally.add([hits, phi, phi.square(), margins, of_responses, classes], y, C)
    sizes = [len(coefficient), M, M, M, M, C]
    (value, mean, square, margin, of_response, frequency), samples = tally.means(
        sizes, process_group
    )
    baseline = float(frequency.max())
    # coefficients of each modality sum to 0, that of the empty set included
    accuracy = mean - baseline * torch.stack(list(coefficient.values()), 1).sum(1)
    v = dict(zip(coefficient, value.tolist(), strict=True))
    v[frozenset()] = baseline
    spread = ((square - mean.square()).clamp(min=0) / samples).sqrt()

    def by_name(values: Tensor) -> dict[str, float]:
        return dict(zip(names, values.tolist(), strict=True))

    return Attribution(
        by_name(accuracy),
        by_name(spread),
        by_name(_spread_over_orders(names, drawn, v)),
        by_name(margin),
        by_name(of_response),
        v[everything],
        baseline,
        samples,
    )


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    own = logits.gather(1, y.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    return own - logits.mean(1)


def _same(
    forward: Callable[[Any, frozenset[str]], Tensor],
    batch: Any,
    present: frozenset[str],
    first: Tensor,
) -> Tensor:
    logits = checked_logits(forward(batch, present), "forward")
    if logits.shape != first.shape:
        raise ValueError(
            f"`forward` returns shape {list(logits.shape)} for {sorted(present)},"
            f" allowed: {list(first.shape)}, as for all modalities"
        )
    return logits


def _exact(names: tuple[str, ...]) -> dict[frozenset[str], Tensor]:
    """[M] by non-empty set: the responses of a network whose logits say which set is present."""
    sets = [frozenset(s) for n in range(len(names), 0, -1) for s in combinations(names, n)]
    rows = dict(zip(sets, torch.eye(len(sets), dtype=torch.float64), strict=True))
    columns = torch.stack(list(mono_modal_responses(rows.__getitem__, names).values()))
    return dict(zip(sets, columns.unbind(1), strict=True))


def _draw(names: tuple[str, ...], orders: int, seed: int) -> list[list[str]]:
    generator = random.Random(seed)
    return [generator.sample(names, len(names)) for _ in range(orders)]


def _sampled(names: tuple[str, ...], orders: list[list[str]]) -> dict[frozenset[str], Tensor]:
    """[M] by non-empty set that occurs in the orders."""
    out: dict[frozenset[str], Tensor] = {}
    for order in orders:
        for i, name in enumerate(order):
            m = names.index(name)
            for present, sign in ((order[: i + 1], 1), (order[:i], -1)):
                if present:
                    zero = torch.zeros(len(names), dtype=torch.float64)
                    out.setdefault(frozenset(present), zero)[m] += sign / len(orders)
    return out


def _spread_over_orders(
    names: tuple[str, ...], orders: list[list[str]] | None, v: dict[frozenset[str], float]
) -> Tensor:
    """Standard error of the mean contribution, [M]."""
    if orders is None:
        return torch.zeros(len(names), dtype=torch.float64)
    gains = []
    for order in orders:
        at = {name: i for i, name in enumerate(order)}
        gains.append(
            [v[frozenset(order[: at[m] + 1])] - v[frozenset(order[: at[m]])] for m in names]
        )
    return torch.tensor(gains, dtype=torch.float64).std(0) / math.sqrt(len(orders))
