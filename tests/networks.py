"""Small multimodal networks, and the papers' formulas as plain loops over parameters."""

import torch
import torch.nn.functional as F
from torch import nn

from modgrad import MMTM

WIDTHS = {"audio": 5, "visual": 7, "text": 3}


class LateFusion(nn.Module):
    """An encoder per modality, concatenated features, one linear head."""

    def __init__(self, modalities=("audio", "visual"), classes=4):
        super().__init__()
        self.encoders = nn.ModuleDict(
            {
                m: nn.Sequential(nn.Linear(WIDTHS[m], 8), nn.Tanh(), nn.Linear(8, 6))
                for m in modalities
            }
        )
        self.head = nn.Linear(6 * len(modalities), classes)

    def forward(self, inputs):
        features = {m: encoder(inputs[m]) for m, encoder in self.encoders.items()}
        return features, self.head(torch.cat(list(features.values()), dim=1))

    def specs(self):
        return {m: f"encoders.{m}" for m in self.encoders}


class CrossModal(nn.Module):
    """A branch and a classifier per modality, and an MMTM between them."""

    def __init__(self, modalities=("audio", "visual"), classes=4):
        super().__init__()
        self.branches = nn.ModuleDict({m: nn.Linear(WIDTHS[m], 8) for m in modalities})
        self.mmtm = MMTM(dict.fromkeys(modalities, 8))
        self.heads = nn.ModuleDict({m: nn.Linear(8, classes) for m in modalities})

    def forward(self, inputs, branch=None):
        features = {m: layer(inputs[m]).tanh() for m, layer in self.branches.items()}
        return {m: self.heads[m](x) for m, x in self.mmtm(features, branch).items()}

    def specs(self):
        own = {m: [f"branches.{m}", f"heads.{m}"] for m in self.branches}
        fusion = {f"{m}_fusion": f"mmtm.excite.{m}" for m in self.branches}
        return own | fusion | {"squeeze": "mmtm.squeeze"}


def batch(modalities, size=9, classes=4, device="cpu", dtype=torch.float32):
    inputs = {m: torch.randn(size, WIDTHS[m], device=device, dtype=dtype) for m in modalities}
    return inputs, torch.randint(0, classes, (size,), device=device)


def ogm_loop(model, features, targets, alpha):
    """OGM-GE without GE, by its formulas, one sample and one parameter at a time."""
    weight, bias = model.head.weight.double(), model.head.bias.double()
    scores, start = {}, 0
    for m, h in features.items():
        block = weight[:, start : start + h.shape[1]]
        start += h.shape[1]
        logits = h.detach().double() @ block.T + bias / len(features)
        scores[m] = sum(F.softmax(row, 0)[y].item() for row, y in zip(logits, targets, strict=True))
    for m, encoder in model.encoders.items():
        ratios = [scores[m] / scores[n] for n in scores if n != m]
        rho = sum(ratios) / len(ratios)
        if rho > 1:
            for p in encoder.parameters():
                p.grad.mul_(1 - torch.tanh(torch.tensor(alpha * rho, dtype=torch.float64)).item())
