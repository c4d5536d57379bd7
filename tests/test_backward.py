"""Several losses: what each parameter's gradient becomes, and what it costs to get there."""

import copy
from dataclasses import dataclass

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dispatched import Ops

import modgrad
from modgrad import OGM, FixedWeights, Modalities, ModulatedOptimizer, Smoothed
from modgrad.balancers import Modulation, NoState

TWO, THREE = ("audio", "visual"), ("audio", "visual", "text")


@dataclass(frozen=True)
class Given:
    """Weights as given: a matrix for the modalities, or a vector for whole losses."""

    weights: tuple
    needs: frozenset = frozenset()

    def init(self, modalities, num_losses, device):
        return NoState()

    def update(self, statistics, state):
        return Modulation(torch.tensor(self.weights, device=statistics.step.device)), state


def names(modalities):
    return ("joint", *modalities)


def setup(balancer, modalities=TWO, device="cpu", **options):
    model = networks.LateFusion(modalities).to(device)
    optimizer = ModulatedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        Modalities(model, **model.specs()),
        balancer,
        losses=names(modalities),
        **options,
    )
    return model, optimizer


def losses_of(model, inputs, targets):
    features, output = model(inputs)
    logits = modgrad.late_fusion_logits(features, model.head)
    return {
        "joint": F.cross_entropy(output, targets),
        **{m: F.cross_entropy(z, targets) for m, z in logits.items()},
    }


def gradient_lists(model, inputs, targets):
    """Each loss's gradient in every parameter, from a backward of its own."""
    out = []
    for name in losses_of(model, inputs, targets):
        twin = copy.deepcopy(model)
        losses_of(twin, inputs, targets)[name].backward()
        out.append([torch.zeros_like(p) if p.grad is None else p.grad for p in twin.parameters()])
    return out


def owner(model, modalities):
    """The index of each parameter's modality, or None for a shared one."""
    named = dict(model.named_parameters())
    return [
        next((i for i, m in enumerate(modalities) if f"encoders.{m}." in name), None)
        for name in named
    ]


@pytest.mark.parametrize("modalities", [TWO, THREE], ids=len)
@pytest.mark.parametrize("needs", [frozenset(), frozenset({"gram"})], ids=["weights", "gram"])
def test_matrix_of_weights(backend, device, modalities, needs):
    M, K = len(modalities), len(modalities) + 1
    matrix = torch.rand(M, K) + 0.5
    balancer = Given(tuple(map(tuple, matrix.tolist())), needs)
    model, optimizer = setup(balancer, modalities, device, backend=backend)
    inputs, targets = networks.batch(modalities, device=device)
    each = gradient_lists(model, inputs, targets)
    optimizer.backward(losses_of(model, inputs, targets))
    for i, (p, m) in enumerate(zip(model.parameters(), owner(model, modalities), strict=True)):
        factors = torch.ones(K) if m is None else matrix[m]
        expected = sum(f * g[i].double().cpu() for f, g in zip(factors, each, strict=True))
        # float32 gradients from another order of the same sums: K eps of the largest, and 1 spare
        size = sum(g[i].abs().max().item() for g in each)
        assert (p.grad.double().cpu() - expected).abs().max() <= 4 * K * 1.2e-7 * size
    optimizer.step()
    assert torch.equal(optimizer.modulator.last.weights.cpu(), matrix)
    numbers = optimizer.modulator.last.read()
    assert numbers["weights"][modalities[0]] == matrix[0].tolist()
    assert len(numbers["losses"]) == K


def test_weights_of_whole_losses_reach_every_parameter_in_one_backward(device):
    weights = (0.25, 2.0, 0.5)
    model, optimizer = setup(Given(weights), device=device)
    inputs, targets = networks.batch(TWO, device=device)
    twin = copy.deepcopy(model)
    total = sum(
        w * v for w, v in zip(weights, losses_of(twin, inputs, targets).values(), strict=True)
    )
    total.backward()
    values = losses_of(model, inputs, targets)
    with Ops() as ops:
        optimizer.backward(values)
    assert ops.count["aten::tanh_backward"] == len(TWO)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_unimodal_loss_costs_one_pass_through_its_own_encoder(device):
    model, optimizer = setup(Given(((1.0,) * 4,) * 3, frozenset({"gram"})), THREE, device)
    values = losses_of(model, *networks.batch(THREE, device=device))
    with Ops() as ops:
        optimizer.backward(values)
    # one tanh an encoder: 3 for the joint loss and 1 for each unimodal one, not 4 times 3
    assert ops.count["aten::tanh_backward"] == 6
    assert ops.reads == 0


def test_gram_is_that_of_the_gradients(backend, device):
    model, optimizer = setup(Given(((1.0,),), frozenset({"gram"})), THREE, device, backend=backend)
    inputs, targets = networks.batch(THREE, device=device)
    each = gradient_lists(model, inputs, targets)
    optimizer.backward(losses_of(model, inputs, targets))
    optimizer.step()
    last = optimizer.modulator.last
    for m in range(3):
        own = [i for i, o in enumerate(owner(model, THREE)) if o == m]
        flat = np.stack(
            [np.concatenate([g[i].double().cpu().numpy().ravel() for i in own]) for g in each]
        )
        exact = flat @ flat.T
        scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
        assert (np.abs(last.gram[m].cpu().numpy() - exact) <= 1e-5 * scale + 1e-12).all()
        # a unimodal loss does not reach the others' encoders
        others = [k for k in range(1, 4) if k != m + 1]
        assert last.gram[m].cpu()[others].abs().max() == 0
    torch.testing.assert_close(last.grad_sq_norms, last.gram.sum((1, 2)))


def test_scores_and_losses_together(device):
    model, optimizer = setup(Smoothed(OGM(0.8), 0.5), device=device)
    inputs, targets = networks.batch(TWO, device=device)
    with pytest.raises(RuntimeError, match="Smoothed needs scores"):
        optimizer.backward(losses_of(model, inputs, targets))
    features, _ = model(inputs)
    optimizer.observe(features=features, head=model.head, targets=targets)
    optimizer.backward(losses_of(model, inputs, targets))
    optimizer.step()
    last = optimizer.modulator.last
    assert last.weights.shape == (2, 3)
    assert torch.equal(last.weights[:, 0], last.weights[:, 2])
    assert (last.weights < 1).any()


def test_frozen_and_unused_parameters(device):
    model, optimizer = setup(
        Given(((1.0, 1.0, 1.0), (0.5, 1.0, 1.0)), frozenset({"gram"})), device=device
    )
    model.encoders["audio"][0].requires_grad_(False)
    model.unused = torch.nn.Linear(2, 2)
    optimizer.add_param_group({"params": list(model.unused.parameters())})
    optimizer.backward(losses_of(model, *networks.batch(TWO, device=device)))
    assert model.encoders["audio"][0].weight.grad is None
    assert model.unused.weight.grad is None
    assert model.encoders["audio"][2].weight.grad is not None
    optimizer.step()


def test_epochs_reach_a_balancer_that_remembers_them(device):
    """State may hold the epoch of a step: the next one must not change under it."""
    model = networks.LateFusion().to(device)
    optimizer = ModulatedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        modgrad.Modalities(model, **model.specs()),
        modgrad.DWA(),
        losses=("a", "b"),
    )
    seen = []
    for epoch, values in enumerate([(4.0, 1.0), (2.0, 1.0), (9.0, 9.0)]):
        optimizer.modulator.set_epoch(epoch)
        zero = sum(p.sum() for p in model.parameters()) * 0
        optimizer.backward({"a": zero + values[0], "b": zero + values[1]})
        optimizer.step()
        seen.append(optimizer.modulator.last.weights[0].cpu())
    expected = 2 * torch.softmax(torch.tensor([0.5, 1.0]) / 2, 0)
    torch.testing.assert_close(torch.stack(seen), torch.stack([torch.ones(2)] * 2 + [expected]))


def test_misuse_is_an_error_before_anything_changes():
    model, optimizer = setup(Given(((1.0,),)))
    values = losses_of(model, *networks.batch(TWO))
    with pytest.raises(ValueError, match=r"`losses` has \['joint'\], allowed: \['audio', 'joint'"):
        optimizer.backward({"joint": values["joint"]})
    with pytest.raises(ValueError, match=r"`losses\['audio'\]` requires no gradient"):
        optimizer.backward({**values, "audio": values["audio"].detach()})
    with pytest.raises(ValueError, match=r"`losses\['audio'\]` has shape \[3\]"):
        optimizer.backward({**values, "audio": values["audio"].expand(3)})
    assert all(p.grad is None for p in model.parameters())
    values["joint"].backward()
    with pytest.raises(
        RuntimeError, match=r"call backward\(\{…\}\) with \['joint', 'audio', 'visual'\]"
    ):
        optimizer.step()
    with pytest.raises(ValueError, match="different names"):
        setup(Given(((1.0,),)), ("audio", "audio"))
    with pytest.raises(ValueError, match="at='parameters' only"):
        setup(Given(((1.0,),)), at="boundary")
    model, optimizer = setup(FixedWeights({"audio": 0.5}))
    optimizer.backward(losses_of(model, *networks.batch(TWO)))
    optimizer.step()
    assert optimizer.modulator.last.weights.tolist() == [[0.5] * 3, [1.0] * 3]
    model, optimizer = setup(OGM(0.3, noise=1.0))
    optimizer.observe(scores=torch.tensor([0.5, 0.2]))
    with pytest.raises(NotImplementedError, match="GE noise with several losses"):
        optimizer.backward(losses_of(model, *networks.batch(TWO)))
    assert all(p.grad is None for p in model.parameters())
