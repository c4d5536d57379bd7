"""Networks as users train them, built without downloads.

Shape letters: B batch, T tokens, D features.
"""

from collections.abc import Mapping
from typing import NamedTuple

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


class Transformer(nn.Module):
    """Pre-norm transformer over embedded tokens, pooled by their mean: [B, T, D] to [B, D]."""

    def __init__(self, embed: nn.Module, tokens: int, width: int, depth: int) -> None:
        super().__init__()
        self.embed = embed
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        layer = nn.TransformerEncoderLayer(
            width, width // 64, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), False)

    def forward(self, x: Tensor) -> Tensor:
        encoded: Tensor = self.body(self.embed(x) + self.position)
        return encoded.mean(1)


class Patches(nn.Conv2d):
    """[B, C, H, W] to [B, T, D], an image's 16 x 16 patches."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(2).transpose(1, 2)


class LateFusion(nn.Module):
    """An encoder a modality, concatenation and a linear head: OGM-GE's and its successors'."""

    def __init__(self, encoders: Mapping[str, nn.Module], features: int, classes: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(dict(encoders))
        self.head = nn.Linear(features, classes)

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: encoder(inputs[name]) for name, encoder in self.encoders.items()}

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        fused: Tensor = self.head(torch.cat(list(features.values()), dim=1))
        return fused


class Setting(NamedTuple):
    """A network and a batch for it."""

    model: LateFusion
    inputs: dict[str, Tensor]
    targets: Tensor
    config: dict[str, str | int]


def audio_visual(device: str, batch: int, pixels: int) -> Setting:
    """Two ResNet-18 on spectrograms and images: 122 tensors, 22.4 M parameters."""
    model = LateFusion({"audio": resnet18(1), "visual": resnet18(3)}, 1024, 6)
    inputs = {
        "audio": torch.randn(batch, 1, pixels, pixels, device=device),
        "visual": torch.randn(batch, 3, pixels, pixels, device=device),
    }
    config: dict[str, str | int] = {"model": "2x resnet18", "batch": batch, "pixels": pixels}
    return Setting(model.to(device), inputs, _targets(batch, 6, device), config)


def _images(device: str, batch: int, pixels: int) -> Tensor:
    return torch.randn(batch, 3, pixels, pixels, device=device)


def _words(device: str, batch: int, tokens: int, vocabulary: int) -> Tensor:
    return torch.randint(0, vocabulary, (batch, tokens), device=device)


def _targets(batch: int, classes: int, device: str) -> Tensor:
    return torch.randint(0, classes, (batch,), device=device)


def vision_language(device: str, batch: int, pixels: int, width: int, depth: int) -> Setting:
    """A ViT over 16 x 16 patches and a BERT-like encoder of 32 words."""
    vocabulary, words, patches = 8192, 32, (pixels // 16) ** 2
    encoders = {
        "image": Transformer(Patches(3, width), patches, width, depth),
        "text": Transformer(nn.Embedding(vocabulary, width), words, width, depth),
    }
    inputs = {
        "image": _images(device, batch, pixels),
        "text": _words(device, batch, words, vocabulary),
    }
    config: dict[str, str | int] = {"model": "ViT + BERT", "batch": batch, "pixels": pixels}
    model = LateFusion(encoders, 2 * width, 101).to(device)
    return Setting(model, inputs, _targets(batch, 101, device), {**config, "width": width})


def three_modalities(device: str, batch: int, width: int, depth: int) -> Setting:
    """Transformers over video, sound and words: 50 steps of features each, as CMU-MOSEI has."""
    steps, widths = 50, {"video": 35, "audio": 74, "text": 300}
    encoders = {
        name: Transformer(nn.Linear(size, width), steps, width, depth)
        for name, size in widths.items()
    }
    inputs = {name: torch.randn(batch, steps, n, device=device) for name, n in widths.items()}
    config: dict[str, str | int] = {"model": "3 transformers", "batch": batch, "width": width}
    model = LateFusion(encoders, 3 * width, 7).to(device)
    return Setting(model, inputs, _targets(batch, 7, device), config)


def parameter_shapes(case: str) -> list[tuple[int, ...]]:
    """Shapes of a list of gradients: of a network, or of many small tensors."""
    if case == "2x resnet18":
        model = LateFusion({"audio": resnet18(1), "visual": resnet18(3)}, 1024, 6)
        return [tuple(p.shape) for p in model.parameters()]
    if case == "1 B":
        return [(4096, 4096)] * 60
    number, _, what = case.partition(" ")
    if what.startswith("of "):
        return [(int(what.removeprefix("of ")),)] * int(number)
    if what != "small":
        allowed = "'2x resnet18', '1 B', '1000 small', '100 of 64'"
        raise ValueError(f"`case` is {case!r}, allowed: {allowed}")
    generator = torch.Generator().manual_seed(0)
    return [(int(n),) for n in torch.randint(16, 4097, (int(number),), generator=generator)]


def tensors(
    shapes: str, device: str, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[int]]:
    """Random tensors of these shapes, in two groups by turns."""
    out = [torch.randn(s, device=device, dtype=dtype) for s in parameter_shapes(shapes)]
    return out, [i % 2 for i in range(len(out))]
