"""How much of a network's accuracy hangs on one modality beside the others.

Shape letters: M modalities, B batch, C classes.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
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
from modgrad.distributed import mean_over_ranks

Logits = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True)
class Utilization:
    """What ``conditional_utilization`` finds, by branch i and the other modality j."""

    rate: dict[str, dict[str, float]]
    """``rate[i][j]`` = u(j | i); usually in [0, 1], negative where j misleads branch i, and 0 where
    branch i is never right."""
    error: dict[str, dict[str, float]]
    """Standard error of each rate, over samples."""
    accuracy: dict[str, float]
    """A(f_i), of the joint output where there are no branches."""
    samples: int

    def difference(self, first: str, second: str) -> float:
        """d_util = u(second | first) - u(first | second).

        Positive: the network uses ``second`` more than ``first``. The paper's has its modality 0
        as ``first``.
        """
        return self.rate[first][second] - self.rate[second][first]


def conditional_utilization(
    predict: Callable[[Any, frozenset[str]], Logits],
    loader: Iterable[Any],
    modalities: Iterable[str],
    *,
    targets: Callable[[Any], Tensor] = last_of,
    model: nn.Module | None = None,
    progress: bool = True,
    process_group: ProcessGroup | None = None,
) -> Utilization:
    """What each branch would lose if it knew only the mean of another modality.

        u(j | i) = (A(f_i) - A(f_i^j)) / A(f_i)

    A is the accuracy over the loader, f_i branch i, and f_i^j the same where what comes from
    modality j is replaced by its training-set mean. M + 1 forward passes a batch, one host read.

    Args:
        predict: from a batch and the modalities to replace, none or one, to logits [B, C]: by
            branch, in a network of branches, where j is replaced in what it gives to the others; or
            of the joint output, which then stands for every branch.
        loader: of held-out batches, at least one on each rank.
        modalities: at least 2 names, or a ``Modalities``.
        targets: from a batch to its classes, int [B]; by default its last item.
        model: put into eval mode, and back.
        progress: a bar, where rich is installed.
        process_group: the ranks over which samples are counted together; None means all.

    Raises:
        ValueError: fewer than two modalities; no samples; targets out of range; shapes.

    Source: Wu, Jastrzebski, Cho and Geras, Characterizing and Overcoming the Greedy Nature of
    Learning in Multi-modal Deep Neural Networks, ICML 2022, for two modalities.
    """
    names = several_names(modalities)
    pairs = [(i, j) for i in names for j in names if i != j]
    tally = Tally()
    with evaluating(model):
        for batch in batches(loader, "conditional utilization", progress):
            whole = _of_branches(predict(batch, frozenset()), names)
            y = targets_of(batch, targets, whole[names[0]])
            right = {i: whole[i].argmax(1) == y for i in names}
            ablated: dict[tuple[str, str], Tensor] = {}
            for j in names:
                logits = _of_branches(predict(batch, frozenset([j])), names)
                ablated |= {(i, j): logits[i].argmax(1) == y for i in names}
            lost = [right[i].double() - ablated[i, j].double() for i, j in pairs]
            drop = torch.stack(lost)
            rows = [torch.stack(list(right.values())), drop, drop.square()]
            tally.add(rows, y, whole[names[0]].shape[1])
    (accuracy, mean, square), samples = tally.means(
        [len(names), len(pairs), len(pairs)], process_group
    )
    A = dict(zip(names, accuracy.tolist(), strict=True))
    deviation = ((square - mean.square()).clamp(min=0) / samples).sqrt()
    rate: dict[str, dict[str, float]] = {i: {} for i in names}
    error: dict[str, dict[str, float]] = {i: {} for i in names}
    for (i, j), m, s in zip(pairs, mean.tolist(), deviation.tolist(), strict=True):
        rate[i][j], error[i][j] = (m / A[i], s / A[i]) if A[i] > 0 else (0.0, 0.0)
    return Utilization(rate, error, A, samples)


def _of_branches(logits: Logits, names: tuple[str, ...]) -> dict[str, Tensor]:
    if not isinstance(logits, Mapping):
        return dict.fromkeys(names, checked_logits(logits, "predict"))
    if set(logits) != set(names):
        raise ValueError(f"`predict` returns {sorted(logits)}, allowed: {sorted(names)}")
    return {name: checked_logits(logits[name], "predict") for name in names}


class FeatureMeans:
    """Training-set means of features, to put in their place: a modality that says nothing.

    ``update`` may be called in a training step: sums stay on the device, nothing is read.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    @classmethod
    def over(
        cls,
        features: Callable[[Any], Mapping[str, Tensor]],
        loader: Iterable[Any],
        *,
        model: nn.Module | None = None,
        progress: bool = True,
    ) -> "FeatureMeans":
        """Of a loader: ``features`` gives a batch's, [B, …] by modality."""
        means = cls()
        with evaluating(model):
            for batch in batches(loader, "feature means", progress):
                means.update(features(batch))
        return means

    @torch.no_grad()
    def update(self, features: Mapping[str, Tensor]) -> None:
        """Count a batch: [B, …] by modality, the same B."""
        if self._sums and set(features) != set(self._sums):
            raise ValueError(f"`features` has {sorted(features)}, allowed: {sorted(self._sums)}")
        if len({len(h) for h in features.values()}) != 1:
            sizes = {name: len(h) for name, h in features.items()}
            raise ValueError(f"`features` has batches of {sizes}, allowed: one size, [B, …]")
        for name, h in features.items():
            total = h.double().sum(0)
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._count += len(next(iter(features.values())))

    def means(self, process_group: ProcessGroup | None = None) -> dict[str, Tensor]:
        """float64 […] by modality, over all samples of all ranks.

        Raises:
            ValueError: nothing was counted.
        """
        if self._count == 0:
            raise ValueError("no features were counted, allowed: at least one sample")
        return {
            name: mean_over_ranks(s.flatten(), self._count, process_group).reshape(s.shape)
            for name, s in self._sums.items()
        }


def fill_means(
    features: Mapping[str, Tensor], means: Mapping[str, Tensor], replaced: Collection[str]
) -> dict[str, Tensor]:
    """The features [B, …], and the mean in place of those replaced: ``FeatureMeans.means()``.

    Raises:
        ValueError: a name that has no features, or no mean; shapes.
    """
    known = set(features) & set(means)
    if not set(replaced) <= known:
        raise ValueError(f"`replaced` is {sorted(replaced)}, allowed: some of {sorted(known)}")
    for name in replaced:
        if means[name].shape != features[name].shape[1:]:
            found, allowed = list(means[name].shape), list(features[name].shape[1:])
            raise ValueError(f"`means[{name!r}]` has shape {found}, allowed: {allowed}")
    return {
        name: means[name].to(h).expand_as(h) if name in replaced else h
        for name, h in features.items()
    }
