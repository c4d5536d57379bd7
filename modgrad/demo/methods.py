"""The methods that the demo knows by name: a balancer, and how a network is trained with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import modgrad
from modgrad.balancers.base import Balancer
from modgrad.demo import epochs, steps
from modgrad.demo.cross_modal import CrossModalNetwork
from modgrad.demo.data import Split
from modgrad.demo.network import CLASSES, MODALITIES, WIDTHS, Network, make_optimizer

PLAIN = "plain"
ALONE = {modality: f"{modality} alone" for modality in MODALITIES}
"""The method that trains one modality without the other: its unimodal ceiling."""


class PrototypeNetwork(Network):
    """With class prototypes, which are buffers: the parameters are those of ``Network``."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = modgrad.Prototypes(CLASSES, dict.fromkeys(MODALITIES, WIDTHS[-1]))


@dataclass(frozen=True)
class Method:
    balancer: Balancer[Any] | None
    step: Callable[..., Tensor]
    losses: tuple[str, ...] = ("joint",)
    network: Callable[[], Any] = Network
    at: Literal["parameters", "boundary"] = "parameters"
    before_epoch: Callable[..., None] | None = None

    def build(
        self, learning_rate: float, device: torch.device, backend: str, seed: int
    ) -> tuple[Any, torch.optim.Optimizer]:
        """A network, the same for every method of a seed that has it, and what trains it."""
        torch.manual_seed(seed)
        network = self.network().to(device)
        optimizer = make_optimizer(network, learning_rate)
        if self.balancer is not None:
            optimizer = modgrad.ModulatedOptimizer(
                optimizer,
                network.modalities(),
                self.balancer,
                losses=self.losses,
                at=self.at,
                backend=backend,
                seed=seed,
            )
        return network, optimizer

    def begin_epoch(
        self,
        network: Any,
        optimizer: torch.optim.Optimizer,
        train: Split,
        epoch: int,
        total: int,
        batch_size: int,
    ) -> None:
        """Before epoch number ``epoch`` of ``total``, counted from 0."""
        if isinstance(optimizer, modgrad.ModulatedOptimizer):
            optimizer.modulator.set_epoch(epoch)
        if self.before_epoch is not None:
            self.before_epoch(network, optimizer, train, epoch, total, batch_size)


def _scored(balancer: Balancer[Any]) -> Method:
    return Method(balancer, steps.scored)


def _several(balancer: Balancer[Any], **more: Any) -> Method:
    return Method(balancer, **{"step": steps.several, "losses": ("joint", *MODALITIES), **more})


def _cross_modal(balancer: Balancer[Any] | None) -> Method:
    return Method(balancer, steps.cross_modal, network=CrossModalNetwork)


_FUSION = {name: f"{name}_fusion" for name in MODALITIES}
_PROTOTYPICAL = {
    "step": steps.prototypical,
    "network": PrototypeNetwork,
    "before_epoch": epochs.refresh_prototypes,
}

UNBALANCED: Mapping[str, Method] = {
    PLAIN: Method(None, steps.plain),
    **{name: Method(None, steps.Alone(modality)) for modality, name in ALONE.items()},
}
# Balancers are frozen: one object serves any number of runs.
BALANCED: Mapping[str, Method] = {
    "ogm": _scored(modgrad.OGM(alpha=0.8)),
    "ogm-ge": _scored(modgrad.OGM(alpha=0.8, noise=1.0)),
    "agm": Method(modgrad.AGM(alpha=1.0), steps.responses, at="boundary"),
    "equal-norms": _scored(modgrad.EqualNorms()),
    "fixed": _scored(modgrad.FixedWeights({"audio": 2.0, "visual": 0.5})),
    "unimodal": _several(modgrad.FixedLossWeights((1.0, 1.0, 1.0))),
    "g-blend": _several(modgrad.GradientBlending(), before_epoch=epochs.estimate_blend),
    "mmpareto": _several(modgrad.MMPareto()),
    "mmpareto-tensor": _several(modgrad.MMPareto(per_tensor=True)),
    "pmr": _several(modgrad.PMR(), **_PROTOTYPICAL),
    "pcgrad": _several(modgrad.PCGrad()),
    "mgda": _several(modgrad.MGDA()),
    "cagrad": _several(modgrad.CAGrad()),
    "upgrad": _several(modgrad.UPGrad()),
    "aligned-mtl": _several(modgrad.AlignedMTL()),
    "gradnorm": _several(modgrad.GradNorm()),
    "dwa": _several(modgrad.DWA()),
    "uncertainty": _several(modgrad.UncertaintyWeighting()),
    "mmtm": _cross_modal(None),
    "cls": _cross_modal(modgrad.ConditionalLearningSpeed(_FUSION, shared="squeeze", warm_up=20)),
    "cls-freeze": _cross_modal(
        modgrad.ConditionalLearningSpeed(_FUSION, shared="squeeze", warm_up=20, remedy="freeze")
    ),
}
METHODS: Mapping[str, Method] = {**UNBALANCED, **BALANCED}
