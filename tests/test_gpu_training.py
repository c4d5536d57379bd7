"""Whole training steps on a GPU: nothing is waited for, and captured ones train as eager ones."""

import copy

import networks
import pytest
import torch
import torch.nn.functional as F

import modgrad
from modgrad.bench.timing import waits_are_errors, warm_up

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

TWO = ("audio", "visual")
LOSSES = ("joint", *TWO)
ONE_LOSS = {
    "FixedWeights": modgrad.FixedWeights({"audio": 0.3}),
    "OGM": modgrad.OGM(0.5),
    "OGM-GE": modgrad.OGM(0.5, noise=0.1),
    "EqualNorms": modgrad.EqualNorms(),
    "Smoothed": modgrad.Smoothed(modgrad.OGM(0.5), 0.9),
    "Between": modgrad.Between(modgrad.OGM(0.5), 0, 2),
    "Smoothed, fixed": modgrad.Smoothed(modgrad.FixedWeights({"audio": 0.3}), 0.9),
}
SEVERAL = {
    "MMPareto": modgrad.MMPareto(),
    "MMPareto per tensor": modgrad.MMPareto(per_tensor=True),
    "PCGrad": modgrad.PCGrad(),
    "GradNorm": modgrad.GradNorm(),
    "MGDA": modgrad.MGDA(),
    "CAGrad": modgrad.CAGrad(),
    "UPGrad": modgrad.UPGrad(),
    "AlignedMTL": modgrad.AlignedMTL(),
    "DWA": modgrad.DWA(),
    "UncertaintyWeighting": modgrad.UncertaintyWeighting(),
}
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, capturable=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, capturable=True),
}

balancers = pytest.mark.parametrize("name", [*ONE_LOSS, *SEVERAL])
optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS)
on_gpu = pytest.mark.parametrize("device", ["cuda"])


class Trainer:
    """A network with its balanced optimizer, and one step of the two."""

    def __init__(self, name, optimizer, device, at="parameters", model=None):
        self.model = model or networks.LateFusion().to(device)
        self.several = name in SEVERAL
        self.optimizer = modgrad.ModulatedOptimizer(
            OPTIMIZERS[optimizer](self.model.parameters()),
            modgrad.Modalities(self.model, **self.model.specs()),
            SEVERAL[name] if self.several else ONE_LOSS[name],
            losses=LOSSES if self.several else ("joint",),
            at=at,
        )
        self.at = at

    def step(self, inputs, targets):
        model, optimizer, head = self.model, self.optimizer, self.model.head
        features, _ = model(inputs)
        optimizer.observe(features=features, head=head, targets=targets)
        if self.at == "boundary":
            features = optimizer.modulator.scale_backward(features)
        joint = F.cross_entropy(head(torch.cat(list(features.values()), 1)), targets)
        optimizer.zero_grad(set_to_none=True)
        if self.several:
            alone = modgrad.late_fusion_logits(features, head)
            each = {m: F.cross_entropy(z, targets) for m, z in alone.items()}
            optimizer.backward({"joint": joint} | each)
        else:
            joint.backward()
        optimizer.step()


def batches(count, device):
    return [networks.batch(TWO, device=device) for _ in range(count)]


@on_gpu
@optimizers
@balancers
def test_the_host_waits_for_nothing_in_a_step(device, optimizer, name):
    trainer = Trainer(name, optimizer, device)
    check_waits(trainer, device)


@on_gpu
@pytest.mark.parametrize("name", ["OGM", "Smoothed", "Smoothed, fixed"])
def test_nor_at_the_boundary(device, name):
    check_waits(Trainer(name, "AdamW", device, at="boundary"), device)


def check_waits(trainer, device):
    *first, last = batches(4, device)
    for batch in first:
        trainer.step(*batch)
    with waits_are_errors():
        trainer.step(*last)


PLACES = [(name, "parameters") for name in (*ONE_LOSS, *SEVERAL)]
PLACES += [(name, "boundary") for name in ("FixedWeights", "OGM", "Smoothed", "Smoothed, fixed")]


@on_gpu
@optimizers
@pytest.mark.parametrize(("name", "at"), PLACES)
def test_a_captured_step_trains_as_an_eager_one(device, optimizer, name, at):
    eager = Trainer(name, optimizer, device, at)
    captured = Trainer(name, optimizer, device, at, model=copy.deepcopy(eager.model))
    first, later = batches(3, device), batches(5, device)
    warm_up(lambda: [captured.step(*batch) for batch in first])
    inputs, targets = copy.deepcopy(first[0])
    graph = torch.cuda.CUDAGraph()
    captured.optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        captured.step(inputs, targets)
    for batch in first:
        eager.step(*batch)
    for new_inputs, new_targets in later:
        eager.step(new_inputs, new_targets)
        for m, x in new_inputs.items():
            inputs[m].copy_(x)
        targets.copy_(new_targets)
        graph.replay()
        # Another algorithm of a matrix product rounds otherwise: its 12 terms by 12 * 2^-24 = 7e-7
        # at most. Momentum sums ten steps of that, eight steps follow each other: 6e-5 of a
        # parameter. Weights come of ratios of what those give, some ten times as steep.
        torch.testing.assert_close(
            captured.optimizer.modulator.last.weights,
            eager.optimizer.modulator.last.weights,
            rtol=1e-3,
            atol=1e-5,
        )
        for p, q in zip(captured.model.parameters(), eager.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    ours, theirs = (t.optimizer.modulator.state_dict() for t in (captured, eager))
    assert ours["step"].equal(theirs["step"])
    for key, value in theirs["balancer"].items():
        torch.testing.assert_close(ours["balancer"][key], value, rtol=1e-3, atol=1e-5)
