"""The measurements that pages mention in a sentence: results/notes.jsonl, a line each.

    python benchmarks/notes.py              # all, three minutes on one core
    python benchmarks/notes.py log          # those whose name contains it

What ``modgrad bench`` times stands in tables; here is what it does not time. Pages name a line by
its ``what``, and tests/test_numbers.py compares.
"""

import json
import sys
import tempfile
from datetime import date
from pathlib import Path
from statistics import mean

import torch
from torch import nn

import modgrad
from modgrad import diagnostics
from modgrad.bench.gradients import group_sq_norms
from modgrad.bench.machine import commit
from modgrad.bench.models import tensors
from modgrad.bench.timing import interleaved
from modgrad.bench.updates import modulated_update
from modgrad.demo.data import load
from modgrad.demo.methods import METHODS
from modgrad.demo.network import MODALITIES
from modgrad.diagnostics.findings import shares_of
from modgrad.doctor import device_name

RESULTS = Path(__file__).parent / "results" / "notes.jsonl"
SEEDS, EPOCHS, BATCH = 3, 20, 64


def noise():
    """Gradients scaled in place with GE noise and without, 22.4 M elements of two ResNet-18."""
    values, group = tensors("2x resnet18", "cpu")
    weights, spread = torch.tensor([0.999, 1.001]), torch.full((2,), 1e-3)
    measured = interleaved(
        {
            "without": lambda: modgrad.modulate_(values, group, weights),
            "with": lambda: modgrad.modulate_(values, group, weights, spread, seed=0),
        },
        10.0,
    )
    elements = sum(t.numel() for t in values)
    return {
        "ns an element": 1e6 * measured["with"].median / elements,
        "times a step without": measured["with"].ratio,
    }


def updates():
    """AdamW of weights known, by norms, and of lists handed over anew, over torch's; norms."""
    found = {}
    for name, shapes, dtype in (
        ("22 M float32", "2x resnet18", torch.float32),
        ("22 M float16", "2x resnet18", torch.float16),
        ("1,000 small", "1000 small", torch.float32),
    ):
        update = modulated_update("adamw", shapes, "cpu", dtype).providers
        norms = group_sq_norms(shapes, "cpu", dtype).providers
        pairs = [
            [update[n] for n in ("stock, no weights", "modgrad, native")],
            [update[n] for n in ("stock, no weights", "modgrad, native, by norms")],
            [update[n] for n in ("stock, no weights", "modgrad, native, lists")],
            [norms[n] for n in ("foreach", "modgrad, native")],
        ]
        found[name] = [
            interleaved({"theirs": theirs, "ours": ours}, 8.0)["ours"].ratio
            for theirs, ours in pairs
        ]
    return found


def log():
    """What ``Log.step`` takes of the host, its transfers included, two encoders of one layer."""
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in MODALITIES})
    modalities = modgrad.Modalities(model, audio="audio", visual="visual")
    optimizer = modgrad.ModulatedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        modalities,
        modgrad.FixedWeights({}),
        record=["grad_sq_norms", "param_sq_norms"],
    )
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with tempfile.TemporaryDirectory() as folder:
        record = diagnostics.Log(folder)

        def steps(look):
            for _ in range(400):
                optimizer.step()
                look(optimizer.modulator)

        measured = interleaved(
            {"without": lambda: steps(id), "with": lambda: steps(record.step)}, 20.0
        )
    return {"us a step": 1e3 * (measured["with"].median - measured["without"].median) / 400}


def shares():
    """The audio's share of the accuracy on AV-Digits by epoch; the mean as absent, and zeros."""
    train, test = load(0.3, torch.device("cpu"))
    found = {}
    for method in ("plain", "mmpareto"):
        for seed in range(SEEDS):
            for epoch, network in enumerate(_epochs(method, seed, train), 1):
                by_mean = _share(network, train, test, by_mean=True)
                found.setdefault((method, epoch), []).append(by_mean)
            if method == "plain":
                zeros = _share(network, train, test, by_mean=False)
                found.setdefault("zeros", []).append((zeros, by_mean))

    def ends(method, first):
        values = [x for e in range(first, EPOCHS + 1) for x in found[method, e]]
        return [min(values), max(values)]

    return {
        "plain, epochs 6 to 20": ends("plain", 6),
        "mmpareto, epochs 10 to 20": ends("mmpareto", 10),
        "plain at the end, by zeros and by means": [
            mean(x) for x in zip(*found["zeros"], strict=True)
        ],
    }


def _epochs(name, seed, train):
    method = METHODS[name]
    network, optimizer = method.build(0.02, torch.device("cpu"), None, seed)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(EPOCHS):
        method.begin_epoch(network, optimizer, train, epoch, EPOCHS, BATCH)
        network.train()
        for inputs, targets in train.batches(BATCH, generator):
            method.step(network, optimizer, inputs, targets)
        yield network


def _share(network, train, test, by_mean):
    def features(batch):
        return network.features(batch[0])

    means = diagnostics.FeatureMeans.over(features, [train[:]], model=network).means()

    def forward(batch, present):
        if by_mean:
            filled = diagnostics.fill_means(features(batch), means, set(MODALITIES) - present)
        else:
            filled = network.features(modgrad.masked(batch[0], present))
        return network.head(torch.cat(list(filled.values()), dim=1))

    found = diagnostics.attributions(forward, [test[:]], MODALITIES, model=network, progress=False)
    return shares_of(vars(found))["audio"]


def main(only=""):
    torch.set_num_threads(1)
    lines = {}
    if RESULTS.exists():
        lines = {x["what"]: x for x in map(json.loads, RESULTS.read_text().splitlines())}
    about = {"device": device_name(torch.device("cpu")), "threads": 1, "torch": torch.__version__}
    about |= {"modgrad": modgrad.__version__, "commit": commit(), "date": date.today().isoformat()}
    for function in (noise, updates, log, shares):
        if only in function.__name__:
            line = {"what": function.__name__, "values": _rounded(function())}
            line |= {"conditions": function.__doc__, **about}
            line |= {"command": f"python benchmarks/notes.py {function.__name__}"}
            lines[function.__name__] = line
            print(line["what"], line["values"])
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))


def _rounded(values):
    return {
        name: [float(f"{x:.3g}") for x in (value if isinstance(value, list) else [value])]
        for name, value in values.items()
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
