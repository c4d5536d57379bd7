"""A small audio-visual network with late fusion."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import modgrad

WIDTHS = (16, 32, 64)
CLASSES = 10
MODALITIES = ("audio", "visual")
FIRST_STRIDE = {"audio": 2, "visual": 1}


def block(channels: int, width: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())


def encoder(first_stride: int) -> nn.Sequential:
    channels, strides = (1, *WIDTHS), (first_stride, 2, 2)
    blocks = map(block, channels, WIDTHS, strides)
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Network(nn.Module):
    """One encoder per modality; their features are concatenated before one linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.audio = encoder(FIRST_STRIDE["audio"])
        self.visual = encoder(FIRST_STRIDE["visual"])
        self.head = nn.Linear(2 * WIDTHS[-1], CLASSES)

    def modalities(self) -> modgrad.Modalities:
        """The head belongs to none."""
        return modgrad.Modalities(self, audio=self.audio, visual=self.visual)

    def features(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.get_submodule(name)(inputs[name]) for name in MODALITIES}

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The joint logits, and the features of each modality."""
        features = self.features(inputs)
        return self.head(torch.cat(list(features.values()), dim=1)), features

    def outputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The joint logits, and those of each modality alone: its block of the head."""
        joint, features = self(inputs)
        return {"joint": joint, **modgrad.late_fusion_logits(features, self.head)}

    def alone(self, modality: str, x: Tensor) -> Tensor:
        """The logits of one modality, without the other's encoder."""
        own = self.get_submodule(modality)(x)
        absent = torch.zeros_like(own)
        features = {name: own if name == modality else absent for name in MODALITIES}
        return modgrad.late_fusion_logits(features, self.head)[modality]


def make_optimizer(network: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9, weight_decay=1e-4)
