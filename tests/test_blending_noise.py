"""Offline Gradient Blending where one modality is noise: no weight for it."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from modgrad import BlendEstimator, GradientBlending, Modalities, ModulatedOptimizer


class Noise(nn.Module):
    """Modality a tells the class, b is noise, and wide enough to learn by heart."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Linear(10, 32), nn.ReLU())
        self.b = nn.Sequential(nn.Linear(400, 32), nn.ReLU())
        self.joint, self.of_a, self.of_b = nn.Linear(64, 3), nn.Linear(32, 3), nn.Linear(32, 3)

    def forward(self, a, b):
        a, b = self.a(a), self.b(b)
        return {"joint": self.joint(torch.cat([a, b], 1)), "a": self.of_a(a), "b": self.of_b(b)}


class Shuffled:
    """Batches of 32 in a new order each time, without a loader's cost."""

    def __init__(self, *tensors):
        self.tensors = tensors

    def __iter__(self):
        order = torch.randperm(len(self.tensors[0]))
        return (tuple(t[i] for t in self.tensors) for i in order.split(32))


def accuracies(seed, weights, epochs=20):
    """Of each head on fresh data, and the estimate; weights None means offline G-Blend."""
    generator = torch.Generator().manual_seed(seed)
    means = 0.8 * torch.randn(3, 10, generator=generator)

    def draw(number):
        target = torch.randint(3, (number,), generator=generator)
        a = means[target] + torch.randn(number, 10, generator=generator)
        return a, torch.randn(number, 400, generator=generator), target

    def losses(model, batch):
        return {k: F.cross_entropy(z, batch[2]) for k, z in model(*batch[:2]).items()}

    train, held_out, test = Shuffled(*draw(200)), Shuffled(*draw(400)), draw(4000)
    torch.manual_seed(seed)
    model = Noise()
    optimizer = ModulatedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        Modalities(model, a=model.a, b=model.b),
        GradientBlending(weights),
        losses=("joint", "a", "b"),
        backend="reference",
    )
    estimate = None
    if weights is None:
        estimator = BlendEstimator(
            model, optimizer, losses, train, held_out, epochs=epochs, progress=False
        )
        estimate = estimator.estimate()
    for _ in range(epochs):
        for batch in train:
            optimizer.zero_grad()
            optimizer.backward(losses(model, batch))
            optimizer.step()
    with torch.no_grad():
        right = {k: z.argmax(1) == test[2] for k, z in model(*test[:2]).items()}
    return {k: x.double().mean().item() for k, x in right.items()}, estimate


def test_a_modality_of_noise_gets_no_weight():
    rows = []
    for seed in range(3):
        blended, estimate = accuracies(seed, None)
        assert estimate.gain["b"] < -0.5
        assert estimate.weights["b"] == 0
        alone = accuracies(seed, (0, 1, 0))[0]["a"]
        naive, equal = (accuracies(seed, w)[0]["joint"] for w in ((1, 0, 0), (1, 1, 1)))
        rows.append((alone, blended["joint"], naive, equal))
    alone, blended, naive, equal = np.mean(rows, axis=0)
    assert blended >= naive + 0.005
    assert alone >= max(blended, naive, equal)
