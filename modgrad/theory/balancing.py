"""A balancer in the training loops of the analysable networks."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from modgrad.balancers.base import Balancer, Statistics
from modgrad.theory.statistics import Array


class Weigher:
    """Weights per modality from a balancer and the statistics that a loop can measure.

    Raises:
        ValueError: the balancer reads a statistic that is not in ``measured``, or adds noise.
    """

    def __init__(
        self, balancer: Balancer[Any], modalities: tuple[str, ...], measured: Iterable[str]
    ) -> None:
        self.needs = balancer.needs
        unknown = sorted(self.needs - set(measured))
        if unknown:
            raise ValueError(
                f"`balancer` reads {unknown}, allowed: one that reads some of {sorted(measured)}"
            )
        self._balancer, self._modalities = balancer, modalities
        self._state = balancer.init(modalities, 1, torch.device("cpu"))

    def weights(self, step: int, measured: Mapping[str, Array]) -> Array:
        """[M], for the step of this number."""
        values = {name: torch.as_tensor(measured[name]) for name in self.needs}
        for name in self.needs & {"scores", "response_losses"}:
            values[name] = values[name].float()
        statistics = Statistics(torch.tensor(step), torch.tensor(0), **values)
        modulation, self._state = self._balancer.update(statistics, self._state)
        if modulation.noise is not None:
            raise ValueError("`balancer` adds noise, allowed: one without, training is noiseless")
        return modulation.weights.expand(len(self._modalities), 1)[:, 0].double().numpy()
