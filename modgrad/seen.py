"""What ``observe`` has shown since the last step."""

import torch
from torch.distributed import ProcessGroup

from modgrad import observation as observed
from modgrad.balancers.base import OBSERVED, Statistics
from modgrad.distributed import mean_of_means
from modgrad.memory import Memory
from modgrad.observation import Observation, Observed


class Seen:
    """The batches of a step, as means over all their samples.

    Args:
        names: of these statistics, those that come of observations are kept as ``names``.
        modalities: in their order.
        asked_by: who needs them, for errors.
        memory: knows the step and the epoch.
        backend: which backend measures.
        process_group: the ranks over which means are taken; None means all.
    """

    def __init__(
        self,
        names: frozenset[str],
        modalities: tuple[str, ...],
        asked_by: str,
        memory: Memory,
        backend: str | None,
        process_group: ProcessGroup | None,
    ) -> None:
        self.names = names & OBSERVED
        self._modalities, self._asked_by, self._memory = modalities, asked_by, memory
        self._backend, self._process_group = backend, process_group
        self._batches: Observed | None = None

    @property
    def is_missing(self) -> bool:
        """Whether something had to be shown, and was not."""
        return bool(self.names) and self._batches is None

    def require(self) -> None:
        """Raise RuntimeError where it is missing."""
        if self.is_missing:
            raise RuntimeError(
                f"{self._asked_by} needs {' and '.join(self.names)}:"
                " call observe(...) between forward and step(), every step"
            )

    def measure(self, observation: Observation, device: torch.device) -> Observed:
        """The statistics of a batch, which have to be on ``device``."""
        batch = observed.measure(observation, self.names, self._modalities, self._backend)
        for name, (mean, _) in batch.items():
            if mean.device != device:
                raise ValueError(f"{name} are on {mean.device}, allowed: {device}")
        return batch

    def add(self, batch: Observed) -> None:
        """One more batch of the same step."""
        self._batches = batch if self._batches is None else observed.add(self._batches, batch)

    def replace(self, batch: Observed | None) -> None:
        """This batch alone, or none."""
        self._batches = batch

    def known(self, batch: Observed | None = None) -> Statistics:
        """All that is known without gradients: of this batch, or of all that were added."""
        means = {
            name: mean_of_means(*mean, self._process_group)
            for name, mean in (batch or self._batches or {}).items()
        }
        return Statistics(self._memory.step, self._memory.epoch, **means)
