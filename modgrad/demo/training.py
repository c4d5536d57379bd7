"""Training runs: a method and a seed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import modgrad
from modgrad.demo.data import Split, load
from modgrad.demo.methods import ALONE, METHODS, Method
from modgrad.demo.options import Options
from modgrad.demo.results import Epoch, Run


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    options: Options
    device: torch.device
    backend: str
    train: Split
    test: Split


def prepare(options: Options, device: torch.device, backend: str) -> Setting:
    return Setting(options, device, backend, *load(options.image_noise, device))


def build(method: str, seed: int, setting: Setting) -> tuple[Any, torch.optim.Optimizer]:
    return METHODS[method].build(setting.options.lr, setting.device, setting.backend, seed)


def run(method: str, seed: int, setting: Setting, report: Callable[[int, float], None]) -> Run:
    """Train from scratch; ``report`` is told the number of an epoch and its loss."""
    network, optimizer = build(method, seed, setting)
    generator = torch.Generator().manual_seed(seed)
    epochs = []
    for number in range(1, setting.options.epochs + 1):
        METHODS[method].begin_epoch(
            *(network, optimizer, setting.train, number - 1),
            *(setting.options.epochs, setting.options.batch_size),
        )
        loss, weights = _epoch(METHODS[method], network, optimizer, setting, generator)
        accuracy = _accuracy(network, setting.test)
        only = next((modality for modality, name in ALONE.items() if name == method), None)
        epochs.append(Epoch(loss, accuracy if only is None else {only: accuracy[only]}, weights))
        report(number, loss)
    return Run(method, seed, tuple(epochs))


def _epoch(
    method: Method,
    network: Any,
    optimizer: torch.optim.Optimizer,
    setting: Setting,
    generator: torch.Generator,
) -> tuple[float, dict[str, Any] | None]:
    """The mean loss, and the mean weights where there is a balancer."""
    network.train()
    losses, weights = [], []
    names: tuple[str, ...] = ()
    for inputs, targets in setting.train.batches(setting.options.batch_size, generator):
        losses.append(method.step(network, optimizer, inputs, targets))
        if isinstance(optimizer, modgrad.ModulatedOptimizer):
            assert optimizer.modulator.last is not None
            weights.append(optimizer.modulator.last.weights)
            names = optimizer.modulator.last.modalities
    loss = torch.stack(losses).mean().item()
    if not weights:
        return loss, None
    rows: list[Any] = torch.stack(weights).mean(0).tolist()
    if len(method.losses) > 1:
        rows = [dict(zip(method.losses, row, strict=True)) for row in rows]
    return loss, dict(zip(names, rows, strict=True))


@torch.no_grad()
def _accuracy(network: Any, test: Split) -> dict[str, float]:
    network.eval()
    outputs = network.outputs(test.inputs)
    correct = [(x.argmax(1) == test.targets).float().mean() for x in outputs.values()]
    return dict(zip(outputs, torch.stack(correct).tolist(), strict=True))
