"""Networks as users train them, built without downloads."""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18(channels: int) -> nn.Sequential:
    """ResNet-18 up to the pooled features, [B, 512]: 60 tensors, 11.2 M parameters."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    width = 64
    for outputs in (64, 128, 256, 512):
        layers += [Block(width, outputs, 1 if outputs == 64 else 2), Block(outputs, outputs, 1)]
        width = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class AudioVisual(nn.Module):
    """Two ResNet-18, concatenation and a linear head: the network of OGM-GE and its successors."""

    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.audio_net = resnet18(1)
        self.visual_net = resnet18(3)
        self.head = nn.Linear(1024, classes)

    def encode(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            "audio": self.audio_net(inputs["audio"]),
            "visual": self.visual_net(inputs["visual"]),
        }

    def forward(self, inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        features = self.encode(inputs)
        return features, self.head(torch.cat(list(features.values()), dim=1))


def audio_visual_batch(size: int, pixels: int, device: str) -> tuple[dict[str, Tensor], Tensor]:
    inputs = {
        "audio": torch.randn(size, 1, pixels, pixels, device=device),
        "visual": torch.randn(size, 3, pixels, pixels, device=device),
    }
    return inputs, torch.randint(0, 6, (size,), device=device)


def parameter_shapes(case: str) -> list[tuple[int, ...]]:
    """Shapes of a list of gradients: of the network above, or of many small tensors."""
    if case == "2x resnet18":
        return [tuple(p.shape) for p in AudioVisual().parameters()]
    if case == "1000 small":
        generator = torch.Generator().manual_seed(0)
        return [(int(n),) for n in torch.randint(16, 4097, (1000,), generator=generator)]
    raise ValueError(f"`case` is {case!r}, allowed: '2x resnet18', '1000 small'")
