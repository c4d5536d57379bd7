"""One step of training, for each way in which a balancer is fed."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import modgrad

Inputs = Mapping[str, Tensor]


def _finish(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def plain(
    network: Any, optimizer: torch.optim.Optimizer, inputs: Inputs, targets: Tensor
) -> Tensor:
    """The joint loss, and nothing else."""
    loss = F.cross_entropy(network(inputs)[0], targets)
    loss.backward()
    return _finish(optimizer, loss)


class Alone:
    """One modality without the other."""

    def __init__(self, modality: str) -> None:
        self.modality = modality

    def __call__(
        self, network: Any, optimizer: torch.optim.Optimizer, inputs: Inputs, targets: Tensor
    ) -> Tensor:
        loss = F.cross_entropy(network.alone(self.modality, inputs[self.modality]), targets)
        loss.backward()
        return _finish(optimizer, loss)


def scored(
    network: Any, optimizer: modgrad.ModulatedOptimizer, inputs: Inputs, targets: Tensor
) -> Tensor:
    """The joint loss, balanced by what each modality's share of the logits is worth."""
    output, features = network(inputs)
    loss = F.cross_entropy(output, targets)
    loss.backward()
    optimizer.observe(features=features, head=network.head, targets=targets)
    return _finish(optimizer, loss)


def several(
    network: nn.Module, optimizer: modgrad.ModulatedOptimizer, inputs: Inputs, targets: Tensor
) -> Tensor:
    """The joint loss and one of each modality's share of the logits."""
    losses = unimodal_losses(network, inputs, targets)
    optimizer.backward(losses)
    return _finish(optimizer, losses["joint"])


def unimodal_losses(network: Any, inputs: Inputs, targets: Tensor) -> dict[str, Tensor]:
    """Joint and unimodal cross entropies, from one forward pass."""
    outputs = network.outputs(inputs)
    return {name: F.cross_entropy(logits, targets) for name, logits in outputs.items()}


def responses(
    network: Any, optimizer: modgrad.ModulatedOptimizer, inputs: Inputs, targets: Tensor
) -> Tensor:
    """The joint loss, with each modality's Shapley share of the logits scaled in backward."""
    features = network.features(inputs)
    network.eval()
    absent = network.features({name: torch.zeros_like(x[:1]) for name, x in inputs.items()})
    network.train()
    shares = modgrad.late_fusion_responses(features, network.head, absent)
    scaled = optimizer.modulator.scale_backward(shares)
    loss = F.cross_entropy(torch.stack(list(scaled.values())).sum(0), targets)
    optimizer.observe(responses=shares, targets=targets)
    loss.backward()
    return _finish(optimizer, loss)


def prototypical(
    network: Any, optimizer: modgrad.ModulatedOptimizer, inputs: Inputs, targets: Tensor
) -> Tensor:
    """The joint loss and one of each modality's distances to its class prototypes."""
    output, features = network(inputs)
    found = network.prototypes(features, targets)
    losses = {"joint": F.cross_entropy(output, targets), **found.losses}
    optimizer.observe(scores=found.scores)
    optimizer.backward(losses)
    return _finish(optimizer, losses["joint"])


def cross_modal(
    network: Any, optimizer: torch.optim.Optimizer, inputs: Inputs, targets: Tensor
) -> Tensor:
    """The sum of the branches' losses; the balancer says which branch is to stand alone."""
    branch = None
    if isinstance(optimizer, modgrad.ModulatedOptimizer):
        branch = optimizer.modulator.state.branch
    logits = network(inputs, branch)
    loss = torch.stack([F.cross_entropy(x, targets) for x in logits.values()]).sum()
    loss.backward()
    return _finish(optimizer, loss)
