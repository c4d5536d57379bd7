"""AGM in training: against the formulas as plain loops, and how it ends, resumes and is refused."""

import copy
import math

import fusion
import networks
import pytest
import torch
import torch.nn.functional as F
from dispatched import Ops

from modgrad import (
    AGM,
    Between,
    Modalities,
    ModulatedOptimizer,
    late_fusion_responses,
    masked,
    mono_modal_responses,
)

TWO, THREE = ("audio", "visual"), ("audio", "visual", "text")
BOTH = pytest.mark.parametrize("modalities", [TWO, THREE], ids=len)
EVERY_FUSION = pytest.mark.parametrize("fused", fusion.FUSIONS)


def attached(model, balancer, lr=0.1, **options):
    inner = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    options = {"at": "boundary"} | options
    return ModulatedOptimizer(inner, Modalities(model, **model.specs()), balancer, **options)


def agm_step(model, optimizer, inputs, targets):
    responses = mono_modal_responses(lambda s: model(masked(inputs, s)), inputs, model=model)
    responses = optimizer.modulator.scale_backward(responses)
    optimizer.observe(responses=responses, targets=targets)
    optimizer.zero_grad()
    F.cross_entropy(sum(responses.values()), targets).backward()
    optimizer.step()


@BOTH
@pytest.mark.parametrize("bias", [False, True])
def test_parameters_and_boundary_agree_only_where_zero_stays_zero(modalities, bias):
    model = fusion.Additive(modalities, bias).double()
    twin = copy.deepcopy(model)
    inputs, targets = networks.batch(modalities, dtype=torch.float64)
    optimizers = [
        ModulatedOptimizer(
            torch.optim.SGD(net.parameters(), 0.1), Modalities(net, **net.specs()), AGM(), at=at
        )
        for net, at in ((model, "boundary"), (twin, "parameters"))
    ]
    for _ in range(3):
        agm_step(model, optimizers[0], inputs, targets)
        logits = twin(inputs)
        with torch.no_grad():  # the other sets are only measured
            responses = mono_modal_responses(
                lambda s, full=logits: full if len(s) == len(inputs) else twin(masked(inputs, s)),
                modalities,
                model=twin,
            )
        optimizers[1].observe(responses=responses, targets=targets)
        optimizers[1].zero_grad()
        F.cross_entropy(logits, targets).backward()
        optimizers[1].step()
    equal = [
        torch.allclose(a, b, rtol=0, atol=1e-6)  # float32 weights
        for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    ]
    assert all(equal) is not bias


class Loop:
    """AGM by its formulas, one sample and one modality at a time, on the host."""

    def __init__(self, model, alpha, cap):
        self.model, self.alpha, self.cap = model, alpha, cap
        self.means, self.t, self.kappas = {}, 0, []

    def logits(self, inputs, *present):
        zeros = {m: x if m in present else torch.zeros_like(x) for m, x in inputs.items()}
        return self.model(zeros)

    def responses(self, inputs):
        full = self.logits(inputs, *inputs)
        self.model.eval()
        out = {}
        for m in inputs:
            n, *more = [other for other in inputs if other != m]
            alone = self.logits(inputs, m)
            if not more:
                out[m] = (full - self.logits(inputs, n) + alone) / 2
                continue
            (o,) = more
            pairs = self.logits(inputs, m, n) - self.logits(inputs, n)
            pairs = pairs + self.logits(inputs, m, o) - self.logits(inputs, o)
            out[m] = (full - self.logits(inputs, n, o) + alone) / 3 + pairs / 6
        self.model.train()
        return out

    def ratio(self, s, m):
        return math.exp(sum(s[j] - s[m] for j in s if j != m) / (len(s) - 1))

    def step(self, optimizer, inputs, targets):
        phi = self.responses(inputs)
        s = {}
        for m, rows in phi.items():
            p = [F.softmax(row, 0)[y].item() for row, y in zip(rows, targets, strict=True)]
            s[m] = -sum(math.log(max(x, 1e-8)) for x in p) / len(p)
        self.t += 1
        for m, response in phi.items():
            tau = self.ratio(self.means, m) if self.means else 1.0
            gap = max(-self.cap, min(tau - self.ratio(s, m), self.cap))
            kappa = math.exp(self.alpha * gap)
            response.register_hook(lambda grad, kappa=kappa: grad * kappa)
            self.kappas.append(kappa)
        for m in s:
            self.means[m] = self.means.get(m, 0.0) * (self.t - 1) / self.t + s[m] / self.t
        optimizer.zero_grad()
        F.cross_entropy(sum(phi.values()), targets).backward()
        optimizer.step()


def lopsided_batch(modalities, device):
    """What the classes are shows in audio, less so in the others: weights move."""
    inputs, targets = networks.batch(modalities, device=device, dtype=torch.float64)
    inputs["audio"][:, :4] += 3 * F.one_hot(targets, 4)
    return inputs, targets


@EVERY_FUSION
@BOTH
def test_twenty_steps_equal_the_formulas_as_loops(backend, device, fused, modalities):
    model = fusion.FUSIONS[fused](modalities).double().to(device)
    optimizer = attached(model, AGM(alpha=4.0, cap=1.0), backend=backend)
    loop = Loop(copy.deepcopy(model), alpha=4.0, cap=1.0)
    sgd = torch.optim.SGD(loop.model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        inputs, targets = lopsided_batch(modalities, device)
        agm_step(model, optimizer, inputs, targets)
        loop.step(sgd, inputs, targets)
        weights = optimizer.modulator.last.weights.tolist()
        # losses are measured in float32: weights are off by alpha r times a few eps
        assert weights == pytest.approx(loop.kappas[-len(weights) :], rel=1e-4)
    assert min(loop.kappas) < 0.8
    assert max(loop.kappas) > 1.25
    for a, b in zip(model.parameters(), loop.model.parameters(), strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    for a, b in zip(model.buffers(), loop.model.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_short_cut_trains_as_the_general_function():
    modalities, nets, optimizers = TWO, [], []
    base = networks.LateFusion(modalities).double()
    for _ in range(2):
        nets.append(copy.deepcopy(base))
        optimizers.append(attached(nets[-1], AGM(alpha=0.5)))
    for _ in range(5):
        inputs, targets = networks.batch(modalities, dtype=torch.float64)
        absent, _ = nets[0]({m: torch.zeros_like(x[:1]) for m, x in inputs.items()})
        features, _ = nets[0](inputs)
        found = late_fusion_responses(features, nets[0].head, absent)
        general = mono_modal_responses(
            lambda s, given=inputs: nets[1](masked(given, s))[1], modalities, model=nets[1]
        )
        for optimizer, responses in zip(optimizers, (found, general), strict=True):
            responses = optimizer.modulator.scale_backward(responses)
            optimizer.observe(responses=responses, targets=targets)
            optimizer.zero_grad()
            F.cross_entropy(sum(responses.values()), targets).backward()
            optimizer.step()
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # float32 weights


def plain_gradients(model, inputs, targets):
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(inputs), targets).backward()
    return [p.grad for p in twin.parameters()]


def test_it_ends_cleanly():
    model = fusion.Intermediate(TWO).double()
    optimizer = attached(model, Between(AGM(), 0, 2, unit="epoch"))
    seen = []
    for epoch in range(4):
        optimizer.modulator.set_epoch(epoch)
        for _ in range(3):
            inputs, targets = networks.batch(TWO, dtype=torch.float64)
            expected = plain_gradients(model, inputs, targets)
            agm_step(model, optimizer, inputs, targets)
            seen.append((optimizer.modulator.last.weights == 1).all().item())
            close = [
                torch.allclose(p.grad, g, rtol=0, atol=1e-13)
                for p, g in zip(model.parameters(), expected, strict=True)
            ]
            assert all(close) == seen[-1]
    assert seen == [False] * 6 + [True] * 6
    assert optimizer.modulator.state.number == 6


@pytest.mark.parametrize("at", ["boundary", "parameters"])
def test_disabled_is_plain_training(at):
    model = fusion.Intermediate(TWO).double()
    optimizer = attached(model, AGM(), at=at, fused=False)  # gradients are looked at
    for enabled in (True, False, True):
        optimizer.modulator.enabled = enabled
        inputs, targets = networks.batch(TWO, dtype=torch.float64)
        expected = plain_gradients(model, inputs, targets)
        agm_step(model, optimizer, inputs, targets)
        close = [
            torch.allclose(p.grad, g, rtol=0, atol=1e-13)
            for p, g in zip(model.parameters(), expected, strict=True)
        ]
        assert all(close) is not enabled
    assert optimizer.modulator.state.number == 2


def test_a_checkpoint_in_mid_run_changes_nothing():
    model = fusion.Late(THREE)
    optimizer = attached(model, AGM())
    for step in range(6):
        inputs, targets = networks.batch(THREE)
        if step == 3:
            other = fusion.Late(THREE)
            other.load_state_dict(model.state_dict())
            resumed = attached(other, AGM())
            resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        agm_step(model, optimizer, inputs, targets)
        if step >= 3:
            agm_step(other, resumed, inputs, targets)
            assert torch.equal(optimizer.modulator.last.weights, resumed.modulator.last.weights)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("at", ["parameters", "boundary"])
def test_nothing_is_read_on_the_host_in_a_step(backend, device, at):
    model = fusion.Intermediate(THREE).to(device)
    optimizer = attached(model, AGM(), at=at, backend=backend)
    inputs, targets = networks.batch(THREE, device=device)
    for _ in range(2):
        with Ops() as ops:
            agm_step(model, optimizer, inputs, targets)
        assert ops.reads == 0


def test_responses_are_shown_by_name_with_targets():
    model = fusion.Late(TWO)
    optimizer = attached(model, AGM())
    inputs, targets = networks.batch(TWO)
    responses = mono_modal_responses(lambda s: model(masked(inputs, s)), TWO, model=model)
    with pytest.raises(ValueError, match="`responses` is None"):
        optimizer.observe(logits=responses, targets=targets)
    with pytest.raises(ValueError, match=r"`responses` has \['audio'\]"):
        optimizer.observe(responses={"audio": responses["audio"]}, targets=targets)
