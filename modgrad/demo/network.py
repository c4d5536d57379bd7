"""A small audio-visual network with late fusion, and one step of its training."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import modgrad

WIDTHS = (16, 32, 64)
CLASSES = 10


def _encoder(first_stride: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels, stride = 1, first_stride
    for width in WIDTHS:
        convolution = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        channels, stride = width, 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Network(nn.Module):
    """One encoder per modality; their features are concatenated before one linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.audio = _encoder(first_stride=2)
        self.visual = _encoder(first_stride=1)
        self.head = nn.Linear(2 * WIDTHS[-1], CLASSES)

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The joint logits, and the features of each modality."""
        features = {"audio": self.audio(inputs["audio"]), "visual": self.visual(inputs["visual"])}
        return self.head(torch.cat(list(features.values()), dim=1)), features

    def alone(self, modality: str, x: Tensor) -> Tensor:
        """The logits of one modality: its block of the head, half the bias."""
        own = self.get_submodule(modality)(x)
        absent = torch.zeros_like(own)
        features = {name: own if name == modality else absent for name in ("audio", "visual")}
        return modgrad.late_fusion_logits(features, self.head)[modality]


def make_optimizer(network: Network, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9, weight_decay=1e-4)


def training_step(
    network: Network,
    optimizer: torch.optim.Optimizer,
    inputs: Mapping[str, Tensor],
    targets: Tensor,
    only: str | None = None,
) -> Tensor:
    """Forward, backward and update; the loss. ``only`` trains that modality alone."""
    if only is None:
        output, features = network(inputs)
    else:
        output, features = network.alone(only, inputs[only]), {}
    loss = F.cross_entropy(output, targets)
    loss.backward()
    if isinstance(optimizer, modgrad.ModulatedOptimizer):
        optimizer.observe(features=features, head=network.head, targets=targets)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()
