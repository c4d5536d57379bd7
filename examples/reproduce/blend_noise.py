"""A modality of pure noise gets no weight from Gradient Blending.

Modality A tells the class, B is noise, and wide enough to be learned by heart. Wang, Tran and
Feiszli, What Makes Training Multi-modal Classification Networks Hard?, CVPR 2020.
"""

import logging
import sys

import numpy as np
import torch
import torch.nn.functional as F
from report import Report
from torch import nn

import modgrad
from modgrad.figures import FILLS, LEGEND

HEADS = ("joint", "a", "b")
EPOCHS = 40


class Net(nn.Module):
    """Two encoders, a head of both and one of each."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Linear(10, 32), nn.ReLU())
        self.b = nn.Sequential(nn.Linear(400, 32), nn.ReLU())
        self.joint, self.of_a, self.of_b = nn.Linear(64, 3), nn.Linear(32, 3), nn.Linear(32, 3)

    def forward(self, a, b):
        a, b = self.a(a), self.b(b)
        return {"joint": self.joint(torch.cat([a, b], 1)), "a": self.of_a(a), "b": self.of_b(b)}


class Batches:
    """Batches of 32 in a new order each time."""

    def __init__(self, *tensors):
        self.tensors = tensors

    def __iter__(self):
        order = torch.randperm(len(self.tensors[0]))
        return (tuple(t[i] for t in self.tensors) for i in order.split(32))


def losses(model, batch):
    *inputs, target = batch
    return {head: F.cross_entropy(z, target) for head, z in model(*inputs).items()}


def problem(seed, deviation):
    """200 samples to train on, 400 held out, 4000 to test on."""
    generator = torch.Generator().manual_seed(seed)
    means = deviation * torch.randn(3, 10, generator=generator)

    def draw(number):
        target = torch.randint(3, (number,), generator=generator)
        a = means[target] + torch.randn(number, 10, generator=generator)
        return a, torch.randn(number, 400, generator=generator), target

    return Batches(*draw(200)), Batches(*draw(400)), draw(4000)


def build(seed, weights=None):
    torch.manual_seed(seed)
    model = Net()
    optimizer = modgrad.ModulatedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        modgrad.Modalities(model, a=model.a, b=model.b),
        modgrad.GradientBlending(weights),
        losses=HEADS,
    )
    return model, optimizer


def accuracy(seed, weights, train, test):
    """Of each head on the test samples, by percent."""
    model, optimizer = build(seed, weights)
    for _ in range(EPOCHS):
        for batch in train:
            optimizer.zero_grad()
            optimizer.backward(losses(model, batch))
            optimizer.step()
    with torch.no_grad():
        return {
            head: 100 * (z.argmax(1) == test[2]).double().mean().item()
            for head, z in model(*test[:2]).items()
        }


def estimate(seed, train, held_out):
    model, optimizer = build(seed)
    estimator = modgrad.BlendEstimator(
        model, optimizer, losses, train, held_out, epochs=EPOCHS, progress=False
    )
    return estimator.estimate()


def unclipped(found):
    """|G| / O^2, divided by their sum: a head that lost gets weight all the same."""
    raw = np.array([abs(found.gain[head]) / found.overfitting[head] ** 2 for head in HEADS])
    return dict(zip(HEADS, (raw / raw.sum()).tolist(), strict=True))


METHODS = ("A alone", "joint loss", "all equal", "G-Blend", "G-Blend, |G|")


def run(seed, deviation):
    """Accuracies by method, of the joint head but for A alone; what the estimate found."""
    train, held_out, test = problem(seed, deviation)
    found = estimate(seed, train, held_out)
    weights = [(0, 1, 0), (1, 0, 0), (1, 1, 1), found.weights, unclipped(found)]
    by_method = dict(zip(METHODS, (accuracy(seed, w, train, test) for w in weights), strict=True))
    joint = {method: heads["joint"] for method, heads in by_method.items()}
    joint["A alone"] = by_method["A alone"]["a"]
    return joint, by_method["G-Blend"]["a"], found


def gated(report, seeds):
    """Class means of deviation 0.8: A can be learned from 200 samples."""
    runs = [run(seed, 0.8) for seed in report.track(range(seeds), "class means of 0.8")]
    accuracies = {method: np.array([joint[method] for joint, _, _ in runs]) for method in METHODS}
    mean = {method: values.mean() for method, values in accuracies.items()}
    found = [f for _, _, f in runs]
    gain = max(f.gain["b"] for f in found)
    report.row("largest G of B", "< 0", f"{gain:.2f}", gain < 0)
    largest = max(f.weights["b"] for f in found)
    report.row("largest weight of B, G-Blend", "0", f"{largest:.3g}", largest == 0)
    largest = max(unclipped(f)["b"] for f in found)
    report.row("largest weight of B, G-Blend with |G|", "> 0", f"{largest:.3f}", largest > 0)

    def row(method, expected, good):
        good = None if good is None else bool(good)
        report.row(f"accuracy, {method}", expected, f"{mean[method]:.1f}", good)

    row("A alone", "the best", mean["A alone"] == max(mean.values()))
    row("joint loss", "", None)
    row("all equal", "the worst", mean["all equal"] == min(mean.values()))
    row("G-Blend", ">= joint loss + 0.5", mean["G-Blend"] >= mean["joint loss"] + 0.5)
    # two seeds differ too little in this for a gate
    less = None if report.quick else mean["G-Blend, |G|"] < mean["G-Blend"]
    row("G-Blend, |G|", "< G-Blend", less)
    return accuracies, found


def limit(report, seeds):
    """Class means of deviation 0.5: 200 samples are too few, and the heads do not gain."""
    runs = [run(seed, 0.5) for seed in report.track(range(seeds), "class means of 0.5")]
    untrained = sum(f.weights["joint"] == 0 for _, _, f in runs)
    report.row("0.5: seeds where the joint head gets weight 0", "", f"{untrained} of {seeds}")
    for method in METHODS:
        value = np.mean([joint[method] for joint, _, _ in runs])
        report.row(f"0.5: accuracy, {method}", "", f"{value:.1f}")
    value = np.mean([of_a for _, of_a, _ in runs])
    report.row("0.5: accuracy, G-Blend, head of A", "", f"{value:.1f}")


def draw(figure, axes, accuracies, found):
    first, second = axes
    figure.set_size_inches(10, 4.2)
    for place, values in enumerate(accuracies.values()):
        colour, hatch = FILLS[max(place - 1, 0)] if place else ("white", "")
        style = {"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.8}
        first.bar(place, values.mean(), 0.6, **style)
        first.plot([place] * len(values), values, "k_", markersize=12)
    first.set_xticks(range(len(METHODS)), [m.replace(" ", "\n", 1) for m in METHODS], fontsize=9)
    first.set(ylabel="test accuracy (%)", ylim=(60, 95))
    first.set_title(f"Bars: mean of {len(values)} seeds; marks: single seeds", fontsize=11)
    for number, (name, weights) in enumerate(
        (("G-Blend", [f.weights for f in found]), ("with |G|", [unclipped(f) for f in found]))
    ):
        for place, head in enumerate(HEADS):
            values = [w[head] for w in weights]
            colour, hatch = FILLS[2 + number]
            style = {"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.8}
            x = place + 0.36 * number - 0.18
            second.bar(x, np.mean(values), 0.36, label=None if place else name, **style)
            second.plot([x] * len(values), values, "k_", markersize=8)
    second.set_xticks(range(3), ["joint head", "head of A", "head of B (noise)"])
    second.set(ylabel="weight")
    second.set_title("Weights", fontsize=11)
    second.legend(**LEGEND)


def main(argv=None):
    report = Report("blend_noise", __doc__, argv)
    logging.getLogger("modgrad").setLevel(logging.ERROR)  # untrained heads are in the table
    figure, axes = report.axes(2)
    draw(figure, axes, *gated(report, 2 if report.quick else 5))
    if not report.quick:
        limit(report, 5)
    return report.finish(figure)


if __name__ == "__main__":
    sys.exit(main())
