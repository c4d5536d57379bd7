"""The methods that the demo knows by name: a balancer, and how a network is trained with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import modgrad
from modgrad.balancers.base import Balancer
from modgrad.demo import steps
from modgrad.demo.network import MODALITIES, Network, make_optimizer

PLAIN = "plain"
ALONE = {modality: f"{modality} alone" for modality in MODALITIES}
"""The method that trains one modality without the other: its unimodal ceiling."""


@dataclass(frozen=True)
class Method:
    balancer: Balancer[Any] | None
    step: Callable[..., Tensor]
    losses: tuple[str, ...] = ("joint",)

    def build(
        self, learning_rate: float, device: torch.device, backend: str, seed: int
    ) -> tuple[Network, torch.optim.Optimizer]:
        """A network, the same for every method of a seed, and what trains it."""
        torch.manual_seed(seed)
        network = Network().to(device)
        optimizer = make_optimizer(network, learning_rate)
        if self.balancer is not None:
            optimizer = modgrad.ModulatedOptimizer(
                optimizer,
                network.modalities(),
                self.balancer,
                losses=self.losses,
                backend=backend,
                seed=seed,
            )
        return network, optimizer


def _scored(balancer: Balancer[Any]) -> Method:
    return Method(balancer, steps.scored)


def _several(balancer: Balancer[Any]) -> Method:
    return Method(balancer, steps.several, ("joint", *MODALITIES))


UNBALANCED: Mapping[str, Method] = {
    PLAIN: Method(None, steps.plain),
    **{name: Method(None, steps.Alone(modality)) for modality, name in ALONE.items()},
}
# Balancers are frozen: one object serves any number of runs.
BALANCED: Mapping[str, Method] = {
    "ogm": _scored(modgrad.OGM(alpha=0.8)),
    "ogm-ge": _scored(modgrad.OGM(alpha=0.8, noise=1.0)),
    "fixed": _scored(modgrad.FixedWeights({"audio": 2.0, "visual": 0.5})),
    "mmpareto": _several(modgrad.MMPareto()),
    "pcgrad": _several(modgrad.PCGrad()),
    "mgda": _several(modgrad.MGDA()),
    "cagrad": _several(modgrad.CAGrad()),
    "upgrad": _several(modgrad.UPGrad()),
    "aligned-mtl": _several(modgrad.AlignedMTL()),
    "gradnorm": _several(modgrad.GradNorm()),
    "dwa": _several(modgrad.DWA()),
    "uncertainty": _several(modgrad.UncertaintyWeighting()),
}
METHODS: Mapping[str, Method] = {**UNBALANCED, **BALANCED}
