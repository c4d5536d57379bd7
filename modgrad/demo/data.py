"""AV-Digits in batches."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from modgrad.datasets import AVDigits, av_digits

Batch = tuple[dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class Split:
    inputs: Mapping[str, Tensor]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Tensor | slice) -> Batch:
        return {name: x[index] for name, x in self.inputs.items()}, self.targets[index]

    def part(self, index: slice) -> "Split":
        return Split(*self[index])

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One epoch in random order; drawn on the CPU, so the same on every device."""
        order = torch.randperm(len(self), generator=generator).to(self.targets.device)
        return (self[index] for index in order.split(size))


def load(image_noise: float, device: torch.device) -> tuple[Split, Split]:
    """Training and test split."""

    def move(split: AVDigits) -> Split:
        inputs = {"audio": split.audio.to(device), "visual": split.image.to(device)}
        return Split(inputs, split.target.to(device))

    train, test = av_digits(image_noise)
    return move(train), move(test)
