"""Training runs: a method and a seed."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import modgrad
from modgrad.datasets import AVDigits, av_digits
from modgrad.demo.network import Network, make_optimizer, training_step
from modgrad.demo.options import BALANCERS, Options
from modgrad.demo.results import ALONE, Epoch, Run


@dataclass(frozen=True)
class Split:
    inputs: Mapping[str, Tensor]
    targets: Tensor

    def __getitem__(self, index: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return {name: x[index] for name, x in self.inputs.items()}, self.targets[index]

    def batches(
        self, size: int, generator: torch.Generator
    ) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """One epoch in random order; drawn on the CPU, so the same on every device."""
        order = torch.randperm(len(self.targets), generator=generator).to(self.targets.device)
        return (self[index] for index in order.split(size))


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    options: Options
    device: torch.device
    backend: str
    train: Split
    test: Split


def prepare(options: Options, device: torch.device, backend: str) -> Setting:
    def move(split: AVDigits) -> Split:
        inputs = {"audio": split.audio.to(device), "visual": split.image.to(device)}
        return Split(inputs, split.target.to(device))

    train, test = av_digits(options.image_noise)
    return Setting(options, device, backend, move(train), move(test))


def build(method: str, seed: int, setting: Setting) -> tuple[Network, torch.optim.Optimizer]:
    """A network, the same for every method of a seed, and what trains it."""
    torch.manual_seed(seed)
    network = Network().to(setting.device)
    optimizer = make_optimizer(network, setting.options.lr)
    if method in BALANCERS:
        modalities = modgrad.Modalities(network, audio=network.audio, visual=network.visual)
        balancer = BALANCERS[method]
        optimizer = modgrad.ModulatedOptimizer(
            optimizer, modalities, balancer, backend=setting.backend, seed=seed
        )
    return network, optimizer


def run(method: str, seed: int, setting: Setting, report: Callable[[int, float], None]) -> Run:
    """Train from scratch; ``report`` is told the number of an epoch and its loss."""
    network, optimizer = build(method, seed, setting)
    only = next((modality for modality, name in ALONE.items() if name == method), None)
    generator = torch.Generator().manual_seed(seed)
    epochs = []
    for number in range(1, setting.options.epochs + 1):
        epochs.append(_epoch(network, optimizer, setting, generator, only))
        report(number, epochs[-1].loss)
    return Run(method, seed, tuple(epochs))


def _epoch(
    network: Network,
    optimizer: torch.optim.Optimizer,
    setting: Setting,
    generator: torch.Generator,
    only: str | None,
) -> Epoch:
    network.train()
    losses, weights = [], []
    for inputs, targets in setting.train.batches(setting.options.batch_size, generator):
        losses.append(training_step(network, optimizer, inputs, targets, only))
        if isinstance(optimizer, modgrad.ModulatedOptimizer):
            assert optimizer.modulator.last is not None
            weights.append(optimizer.modulator.last.weights)
    accuracy = _accuracy(network, setting.test)
    if only is not None:
        accuracy = {only: accuracy[only]}
    mean_weights = None
    if weights:
        values = torch.stack(weights).mean(0).tolist()
        mean_weights = dict(zip(setting.train.inputs, values, strict=True))
    return Epoch(torch.stack(losses).mean().item(), accuracy, mean_weights)


@torch.no_grad()
def _accuracy(network: Network, test: Split) -> dict[str, float]:
    network.eval()
    joint, features = network(test.inputs)
    logits = {"joint": joint, **modgrad.late_fusion_logits(features, network.head)}
    correct = torch.stack([(x.argmax(1) == test.targets).float().mean() for x in logits.values()])
    return dict(zip(logits, correct.tolist(), strict=True))
