"""Twenty steps of training against the methods as plain Python loops, with a host read each time.

In float64, so that only the weights, which are float32, can differ.
"""

import copy
import math

import networks
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from modgrad import (
    PMR,
    FixedLossWeights,
    GradNorm,
    MMPareto,
    Modalities,
    ModulatedOptimizer,
    Prototypes,
)

TWO, THREE = ("audio", "visual"), ("audio", "visual", "text")
STEPS = 20
EPS = 2.0**-24  # of a weight


class Network(networks.LateFusion):
    """With a head of its own for each modality: encoders of four tensors."""

    def __init__(self, modalities=TWO):
        super().__init__(modalities)
        self.heads = torch.nn.ModuleDict({m: torch.nn.Linear(6, 4) for m in modalities})


def losses_of(model, inputs, targets):
    features, output = model(inputs)
    own = {m: F.cross_entropy(model.heads[m](h), targets) for m, h in features.items()}
    return {"joint": F.cross_entropy(output, targets), **own}


class Race:
    """A model under the modulator and its twin under a loop; equal after every step."""

    def __init__(self, balancer, modalities, backend, device, losses=None):
        torch.manual_seed(0)  # a run in which everything a loop can do happens
        self.model = Network(modalities).to(device, torch.float64)
        self.twin = copy.deepcopy(self.model)
        self.plain = torch.optim.SGD(self.twin.parameters(), lr=0.1, momentum=0.9)
        self.balanced = ModulatedOptimizer(
            torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9),
            Modalities(self.model, **self.model.specs()),
            balancer,
            losses=losses or ("joint", *modalities),
            backend=backend,
        )
        self.travelled = 0.0

    def step(self, losses, loop):
        self.balanced.zero_grad()
        self.balanced.backward(losses)
        self.balanced.step()
        self.plain.zero_grad()
        loop()
        before = [p.detach().clone() for p in self.twin.parameters()]
        self.plain.step()
        pairs = zip(before, self.twin.parameters(), strict=True)
        self.travelled += max((p - q).abs().max().item() for p, q in pairs)
        # a rounding or two of each step's weights, and what later steps make of the difference
        for p, q in zip(self.model.parameters(), self.twin.parameters(), strict=True):
            assert (p - q).abs().max().item() <= 4 * EPS * self.travelled


def batches(modalities, device, count=STEPS):
    for _ in range(count):
        yield networks.batch(modalities, device=device, dtype=torch.float64)


def mmpareto_loop(model, losses, gamma, per_tensor, seen):
    """The released code's: a backward for each loss and one for the sum, encoder by encoder."""
    names = list(losses)
    kept = {}
    for name in names:
        model.zero_grad()
        losses[name].backward(retain_graph=True)
        kept[name] = {
            m: [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in e.parameters()]
            for m, e in model.encoders.items()
        }
    model.zero_grad()
    sum(losses.values()).backward()
    for m, encoder in model.encoders.items():
        joint, own = kept["joint"][m], kept[m][m]
        g, u = (torch.cat([t.flatten() for t in tensors]) for tensors in (joint, own))
        cosine = (g @ u / (g.norm() * u.norm())).item()
        k = 0.5 if cosine > 0 else ((u - g) @ u / (u - g).square().sum()).item()
        assert 0.001 < k < 0.999, "where the released code changes nothing"
        seen.add("agree" if cosine > 0 else "conflict")
        whole = (g + u).norm().item() / (2 * k * g + 2 * (1 - k) * u).norm().item()
        for p, a, b in zip(encoder.parameters(), joint, own, strict=True):
            h = 2 * k * a + 2 * (1 - k) * b
            ratio = (a + b).norm().item() / h.norm().item() if per_tensor else whole
            seen.add("longer" if ratio > 1.001 else "as it is")
            p.grad = gamma * max(1.0, ratio) * h


@pytest.mark.parametrize(
    ("modalities", "per_tensor"), [(TWO, False), (THREE, True)], ids=["encoder", "tensor"]
)
def test_mmpareto(backend, device, modalities, per_tensor):
    race = Race(MMPareto(1.5, per_tensor), modalities, backend, device)
    seen = set()
    for batch in batches(modalities, device):
        losses = losses_of(race.twin, *batch)
        race.step(
            losses_of(race.model, *batch),
            lambda x=losses: mmpareto_loop(race.twin, x, 1.5, per_tensor, seen),
        )
    assert seen == {"agree", "conflict", "longer", "as it is"}


def gradnorm_loop(model, losses, weights, initial, alpha, lr):
    """Weights of the next step; the gradients of this one's are left in the model."""
    parameters = list(model.encoders.parameters())
    norms, values = [], [loss.item() for loss in losses.values()]
    initial = initial or values
    for loss in losses.values():
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        norms.append(math.sqrt(sum(g.square().sum().item() for g in grads if g is not None)))
    sum(w * loss for w, loss in zip(weights, losses.values(), strict=True)).backward()
    G = [w * n for w, n in zip(weights, norms, strict=True)]
    rates = [x / x0 for x, x0 in zip(values, initial, strict=True)]
    mean, mean_rate = sum(G) / len(G), sum(rates) / len(rates)
    stepped = []
    for w, g, n, rate in zip(weights, G, norms, rates, strict=True):
        target = mean * (rate / mean_rate) ** alpha
        stepped.append(max(w - lr * math.copysign(n, g - target), 1e-3))
    return [w * len(weights) / sum(stepped) for w in stepped], initial


@pytest.mark.parametrize("modalities", [TWO, THREE], ids=len)
def test_gradnorm(backend, device, modalities):
    alpha, lr = 1.5, 0.1
    race = Race(GradNorm(alpha, lr), modalities, backend, device)
    state = [1.0] * (len(modalities) + 1), None
    for batch in batches(modalities, device):

        def loop(batch=batch):
            nonlocal state
            state = gradnorm_loop(race.twin, losses_of(race.twin, *batch), *state, alpha, lr)

        race.step(losses_of(race.model, *batch), loop)
    assert max(abs(w - 1) for w in state[0]) > 0.1


def test_fixed_loss_weights(backend, device):
    weights = (1.0, 0.5, 2.0)
    race = Race(FixedLossWeights(weights), TWO, backend, device)
    for batch in batches(TWO, device):
        pairs = zip(weights, losses_of(race.twin, *batch).values(), strict=True)
        race.step(losses_of(race.model, *batch), sum(w * x for w, x in pairs).backward)


class PMRLoop:
    """The paper's formula, one sample and one class at a time."""

    def __init__(self, alpha, entropy, momentum):
        self.alpha, self.entropy, self.momentum = alpha, entropy, momentum
        self.centres = {}
        self.seen = set()

    def refresh(self, passes):
        """``passes``: features and targets of every batch."""
        for m in passes[0][0]:
            members = {}
            for features, targets in passes:
                for h, y in zip(features[m], targets, strict=True):
                    members.setdefault(y.item(), []).append(h.detach())
            old = self.centres.get(m, {})
            self.centres[m] = dict(old)
            for y, own in members.items():
                new = sum(own) / len(own)
                self.centres[m][y] = (
                    (1 - self.momentum) * new + self.momentum * old[y] if y in old else new
                )

    def terms(self, m, features, targets):
        loss = score = entropy = 0.0
        for h, y in zip(features, targets, strict=True):
            distances = []
            for k in range(len(self.centres[m])):
                distances.append((h - self.centres[m][k]).square().sum().sqrt())
            total = sum(torch.exp(-d) for d in distances)
            p = [torch.exp(-d) / total for d in distances]
            loss = loss - p[y.item()].log()
            score += p[y.item()].item()
            entropy = entropy - sum(x * x.log() for x in p)
        return loss / len(targets), score, entropy / len(targets)

    def backward(self, joint, features, targets, epoch):
        terms = {m: self.terms(m, h, targets) for m, h in features.items()}
        (loss_0, score_0, entropy_0), (loss_1, score_1, entropy_1) = terms.values()
        rho = score_0 / score_1
        beta, gamma = min(max(1 / rho - 1, 0.0), 1.0), min(max(rho - 1, 0.0), 1.0)
        total = joint + self.alpha * (beta * loss_0 + gamma * loss_1)
        if epoch < 2:
            total = total - self.entropy * (entropy_0 if rho > 1 else entropy_1)
        total.backward()
        self.seen.add(rho > 1)


@pytest.mark.parametrize("entropy", [0.0, 0.3], ids=["prototypes", "entropy"])
def test_pmr(backend, device, entropy):
    names = ["joint", *TWO] + ([f"{m} entropy" for m in TWO] if entropy else [])
    balancer = PMR(alpha=2.0, entropy=entropy, entropy_epochs=2)
    race = Race(balancer, TWO, backend, device, names)
    prototypes = Prototypes(4, dict.fromkeys(TWO, 6), momentum=0.3).to(device, torch.float64)
    loop = PMRLoop(2.0, entropy, 0.3)
    for i, (inputs, targets) in enumerate(batches(TWO, device)):
        if i % 5 == 0:  # an epoch
            race.balanced.modulator.set_epoch(i // 5)
            data = list(batches(TWO, device, 3))
            for x, y in data:
                prototypes.accumulate(race.model(x)[0], y)
            prototypes.refresh()
            loop.refresh([(race.twin(x)[0], y) for x, y in data])
        features, output = race.model(inputs)
        out = prototypes(features, targets)
        losses = {"joint": F.cross_entropy(output, targets), **out.losses}
        if entropy:
            losses |= {f"{m} entropy": value for m, value in out.entropies.items()}
        race.balanced.observe(scores=out.scores)
        theirs, output = race.twin(inputs)
        joint = F.cross_entropy(output, targets)
        race.step(losses, lambda a=(joint, theirs, targets, i // 5): loop.backward(*a))
    assert loop.seen == {True, False}


@pytest.mark.parametrize(
    "balancer", [MMPareto(), MMPareto(per_tensor=True), GradNorm(), FixedLossWeights((1.0,) * 3)]
)
def test_a_step_never_reads_a_value_on_the_host(balancer):
    def step():
        model = Network()
        optimizer = ModulatedOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            Modalities(model, **model.specs()),
            balancer,
            losses=("joint", *TWO),
        )
        optimizer.backward(losses_of(model, *networks.batch(TWO)))
        optimizer.step()

    with FakeTensorMode():
        step()
    step()  # and nothing fake is left behind
