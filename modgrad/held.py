"""The parameters that an optimizer holds, the modality of each, and what else it says of them."""

from collections.abc import Sequence
from operator import is_

from torch import Tensor, nn
from torch.optim import Optimizer

from modgrad.modalities import Assignment, Modalities

# Steps without a gradient before the model is asked, which takes longer than a step: 4 ms for 1,000
# names. Batches may lack a modality.
_PATIENCE = 10


class HeldParameters:
    """Looked up again whenever the optimizer's are other tensors than before.

    Raises:
        ValueError: none of them belongs to a modality.
    """

    def __init__(self, optimizer: Optimizer, modalities: Modalities) -> None:
        self._optimizer, self._modalities = optimizer, modalities
        self._all: list[nn.Parameter] = []
        self.own = Assignment([], [])
        """Those of modalities, and whose each is, as last looked up."""
        self._places: list[int] = []  # of them among all
        self._owners: list[int] = []
        self._places_of: dict[int, list[int]] = {}  # by modality
        self._absent_for: dict[int, int] = {}  # steps in a row that a modality had no gradient
        self.refresh()

    def refresh(self) -> list[nn.Parameter]:
        """All parameters now; the same list until one is replaced."""
        held = [p for group in self._optimizer.param_groups for p in group["params"]]
        if len(held) != len(self._all) or not all(map(is_, held, self._all)):
            self.own = self._modalities.assign(held)
            place = {id(p): i for i, p in enumerate(held)}
            self._places = [place[id(p)] for p in self.own.parameters]
            modality = dict(zip(self._places, self.own.group, strict=True))
            self._owners = [modality.get(i, -1) for i in range(len(held))]
            self._places_of = {}
            for i, m in modality.items():
                self._places_of.setdefault(m, []).append(i)
            self._all = held
            if not self.own.parameters:
                raise ValueError("the optimizer holds no parameter of any modality")
        return self._all

    def owners(self) -> list[int]:
        """Of each of all parameters, the index of its modality, -1 for shared."""
        self.refresh()
        return self._owners

    def has_gradient(self, grads: Sequence[Tensor | None]) -> bool:
        """Whether any parameter of a modality has one; ``grads`` are those of all parameters.

        Raises:
            ValueError: a modality has had none for a while, as the model has other parameters for
                it by now.
        """
        absent = {
            m for m, places in self._places_of.items() if all(grads[i] is None for i in places)
        }
        absent_for = {m: self._absent_for.get(m, 0) + 1 for m in absent}
        if _PATIENCE in absent_for.values():
            self._modalities.assign(self._all)
        self._absent_for = absent_for
        return len(absent) < len(self._places_of)

    def present(
        self, grads: Sequence[Tensor | None]
    ) -> tuple[list[nn.Parameter], list[Tensor], list[int]]:
        """The parameters of modalities that have a gradient, it, and whose each is."""
        of_own = zip(*self.own, (grads[i] for i in self._places), strict=True)
        found = [(p, grad, g) for p, g, grad in of_own if grad is not None]
        return [p for p, _, _ in found], [grad for _, grad, _ in found], [g for *_, g in found]

    def trainable(self) -> tuple[Assignment, list[nn.Parameter]]:
        """The parameters of modalities, and the shared ones, that require a gradient."""
        pairs = [pair for pair in zip(*self.own, strict=True) if pair[0].requires_grad]
        own = set(map(id, self.own.parameters))
        shared = [p for p in self._all if p.requires_grad and id(p) not in own]
        return Assignment([p for p, _ in pairs], [g for _, g in pairs]), shared

    @property
    def grad_scale(self) -> Tensor | None:
        """By which gradients are too large: set by GradScaler on fused optimizers."""
        return getattr(self._optimizer, "grad_scale", None)

    @property
    def found_inf(self) -> Tensor | None:
        """Not 0 where the step is to be skipped: set by GradScaler on fused optimizers."""
        return getattr(self._optimizer, "found_inf", None)

    def learning_rate_is_zero(self) -> bool:
        """Whether every learning rate is a host-known 0, so that a step changes nothing."""
        rates = [group.get("lr") for group in self._optimizer.param_groups]
        on_device = any(isinstance(rate, Tensor) and rate.device.type != "cpu" for rate in rates)
        return not on_device and all(rate == 0 for rate in rates)
