"""Networks that fuse early, in the middle and late, with batch norm, so that modes matter."""

import torch
from networks import WIDTHS
from torch import nn


def _mlp(width, out):
    return nn.Sequential(nn.Linear(width, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, out))


class Early(nn.Module):
    """One network over the concatenated inputs: no parameter is a modality's own."""

    def __init__(self, modalities, classes=4):
        super().__init__()
        self.modalities = modalities
        self.trunk = _mlp(sum(WIDTHS[m] for m in modalities), classes)

    def forward(self, inputs):
        return self.trunk(torch.cat(list(inputs.values()), dim=1))

    def specs(self):
        """Any parameters will do: at the boundary only the names count."""
        names = ["trunk.0.weight", "trunk.3.weight", "trunk.3.bias"]
        return dict(zip(self.modalities, names, strict=False))


class Late(nn.Module):
    """An encoder per modality, concatenated features, a linear head."""

    def __init__(self, modalities, classes=4):
        super().__init__()
        self.encoders = nn.ModuleDict({m: _mlp(WIDTHS[m], 6) for m in modalities})
        self.head = nn.Linear(6 * len(modalities), classes)

    def forward(self, inputs):
        return self.fuse({m: encoder(inputs[m]) for m, encoder in self.encoders.items()})

    def fuse(self, features):
        return self.head(torch.cat(list(features.values()), dim=1))

    def specs(self):
        return {m: f"encoders.{m}" for m in self.encoders}


class Intermediate(Late):
    """The same, and a head that is a network."""

    def __init__(self, modalities, classes=4):
        super().__init__(modalities, classes)
        self.head = nn.Sequential(self.head, nn.Tanh(), nn.Linear(classes, classes))


class Additive(nn.Module):
    """Late fusion by the sum of encoders, each of which makes 0 of 0."""

    def __init__(self, modalities, bias=False):
        super().__init__()
        self.encoders = nn.ModuleDict(
            {
                m: nn.Sequential(
                    nn.Linear(WIDTHS[m], 8, bias=bias),
                    nn.Tanh(),
                    nn.Linear(8, 4, bias=False),
                )
                for m in modalities
            }
        )

    def forward(self, inputs):
        return sum(encoder(inputs[m]) for m, encoder in self.encoders.items())

    def specs(self):
        return {m: f"encoders.{m}" for m in self.encoders}


FUSIONS = {"early": Early, "intermediate": Intermediate, "late": Late}
