"""What a step decides, did, and can be told: the records that the modulator passes around."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor
from torch.distributed import ProcessGroup
from typing_extensions import TypedDict

from modgrad.balancers.base import Modulation, Statistics
from modgrad.rules import Rule


@dataclass(frozen=True)
class LastStep:
    """What the last step measured and did: device tensors in the order of the modalities.

    Norms are NaN where a fused update was to measure them, and the step was skipped.
    """

    modalities: tuple[str, ...]
    weights: Tensor  # float32 [M]; [M, K] with several losses
    noise: Tensor | None = None  # float32 [M]
    scores: Tensor | None = None  # float32 [M]
    response_losses: Tensor | None = None  # float32 [M]
    grad_sq_norms: Tensor | None = None  # float64 [M], before modulation
    param_sq_norms: Tensor | None = None  # float64 [M], before the update
    losses: Tensor | None = None  # float32 [K]
    gram: Tensor | None = None  # float64 [M, K, K], before modulation

    def read(self) -> dict[str, Any]:
        """The numbers on the host, by quantity and modality. This waits for the device."""
        out: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                rows = value.tolist()
                by_modality = name != "losses"
                out[name] = dict(zip(self.modalities, rows, strict=True)) if by_modality else rows
        return out


class Decision(NamedTuple):
    """A balancer's answer, not yet committed."""

    statistics: Statistics
    modulation: Modulation
    weights: Tensor  # float32 [M, K]
    state: Any

    def as_last(self, modalities: tuple[str, ...], takes_losses: bool) -> LastStep:
        """What is told of it once it is committed."""
        measured = self.statistics
        return LastStep(
            modalities,
            self.weights.clone() if takes_losses else self.weights[:, 0].clone(),
            None if self.modulation.noise is None else self.modulation.noise.clone(),
            measured.scores,
            measured.response_losses,
            measured.grad_sq_norms,
            measured.param_sq_norms,
            measured.losses,
            measured.gram,
        )


class Pending(NamedTuple):
    """A decision that gradients are to follow, or have."""

    decision: Decision
    seed: Tensor | None = None  # of the noise
    applied: bool = False  # in backward already
    late: frozenset[str] = frozenset()  # statistics that the update measures
    rule: Rule | None = None  # by which the update finds the weights, and fills the decision's


class Options(TypedDict, total=False):
    """Keyword arguments of ``Modulator``, passed on by ``attach`` and ``ModulatedOptimizer``."""

    losses: Sequence[str]
    at: Literal["parameters", "boundary"]
    record: Iterable[str]
    backend: str | None
    seed: int
    process_group: ProcessGroup | None
