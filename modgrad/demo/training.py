"""Training runs: a method and a seed."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import modgrad
from modgrad.datasets import AVDigits, av_digits
from modgrad.demo.methods import ALONE, METHODS, Method
from modgrad.demo.network import Network
from modgrad.demo.options import Options
from modgrad.demo.results import Epoch, Run


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
    return METHODS[method].build(setting.options.lr, setting.device, setting.backend, seed)


def run(method: str, seed: int, setting: Setting, report: Callable[[int, float], None]) -> Run:
    """Train from scratch; ``report`` is told the number of an epoch and its loss."""
    network, optimizer = build(method, seed, setting)
    generator = torch.Generator().manual_seed(seed)
    epochs = []
    for number in range(1, setting.options.epochs + 1):
        if isinstance(optimizer, modgrad.ModulatedOptimizer):
            optimizer.modulator.set_epoch(number - 1)
        loss, weights = _epoch(METHODS[method], network, optimizer, setting, generator)
        accuracy = _accuracy(network, setting.test)
        only = next((modality for modality, name in ALONE.items() if name == method), None)
        epochs.append(Epoch(loss, accuracy if only is None else {only: accuracy[only]}, weights))
        report(number, loss)
    return Run(method, seed, tuple(epochs))


def _epoch(
    method: Method,
    network: Network,
    optimizer: torch.optim.Optimizer,
    setting: Setting,
    generator: torch.Generator,
) -> tuple[float, dict[str, Any] | None]:
    """The mean loss, and the mean weights where there is a balancer."""
    network.train()
    losses, weights = [], []
    for inputs, targets in setting.train.batches(setting.options.batch_size, generator):
        losses.append(method.step(network, optimizer, inputs, targets))
        if isinstance(optimizer, modgrad.ModulatedOptimizer):
            assert optimizer.modulator.last is not None
            weights.append(optimizer.modulator.last.weights)
    loss = torch.stack(losses).mean().item()
    if not weights:
        return loss, None
    rows: list[Any] = torch.stack(weights).mean(0).tolist()
    if len(method.losses) > 1:
        rows = [dict(zip(method.losses, row, strict=True)) for row in rows]
    return loss, dict(zip(setting.train.inputs, rows, strict=True))


@torch.no_grad()
def _accuracy(network: Network, test: Split) -> dict[str, float]:
    network.eval()
    outputs = network.outputs(test.inputs)
    correct = [(x.argmax(1) == test.targets).float().mean() for x in outputs.values()]
    return dict(zip(outputs, torch.stack(correct).tolist(), strict=True))
