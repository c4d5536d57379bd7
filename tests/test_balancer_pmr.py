"""PMR: who is helped, for how long, and from the prototypes to the gradients."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from modgrad import PMR, Modalities, ModulatedOptimizer, Prototypes
from modgrad.balancers import Statistics

CPU = torch.device("cpu")
TWO = ("audio", "visual")


def weigh(balancer, scores, epoch=0):
    names = tuple(f"m{i}" for i in range(len(scores)))
    K = len(scores) * (2 if balancer.entropy > 0 else 1) + 1
    state = balancer.init(names, K, CPU)
    statistics = Statistics(
        torch.tensor(0), torch.tensor(epoch), scores=torch.tensor(scores, dtype=torch.float32)
    )
    modulation, _ = balancer.update(statistics, state)
    assert modulation.weights.dtype == torch.float32
    return modulation.weights.double().numpy()


def test_two_modalities_against_the_paper():
    rng = np.random.default_rng(0)
    for _ in range(50):
        s = rng.uniform(0.01, 1, 2).astype(np.float32)
        rho = float(s[0]) / float(s[1])
        paper = [1.0, 0.7 * min(max(1 / rho - 1, 0), 1), 0.7 * min(max(rho - 1, 0), 1)]
        # a float32 ratio near 1, less 1: an eps of the ratio
        np.testing.assert_allclose(weigh(PMR(0.7), s), paper, rtol=2**-22, atol=2**-22)


@pytest.mark.parametrize("M", [3, 5])
def test_several_modalities_by_pairs(M):
    rng = np.random.default_rng(M)
    for _ in range(20):
        s = rng.uniform(0.05, 1, M).astype(np.float32)
        found = weigh(PMR(1.0, entropy=0.2), s)
        for m in range(M):
            lag = np.mean([float(s[n]) / float(s[m]) for n in range(M) if n != m])
            helped = min(max(lag - 1, 0), 1)
            np.testing.assert_allclose(found[1 + m], helped, rtol=2**-21, atol=M * 2**-21)
            assert found[1 + M + m] == (np.float32(-0.2) if lag < 1 else 0)


def test_the_entropy_lasts_for_the_first_epochs():
    balancer = PMR(entropy=0.5, entropy_epochs=3)
    assert [weigh(balancer, [0.8, 0.2], epoch)[3] for epoch in range(5)] == [-0.5] * 3 + [0.0] * 2
    assert weigh(PMR(entropy=0.5), [0.8, 0.2], 10**6)[3] == -0.5


def test_number_of_losses():
    with pytest.raises(
        ValueError, match=r"a prototypical loss of each of audio, visual.*allowed: 3"
    ):
        PMR().init(TWO, 5, CPU)
    with pytest.raises(ValueError, match=r"and an entropy of each.*`losses` names 3, allowed: 5"):
        PMR(entropy=0.1).init(TWO, 3, CPU)
    with pytest.raises(ValueError, match="allowed: at least 2"):
        PMR().init(("audio",), 2, CPU)


def network(**options):
    encoders = torch.nn.ModuleDict(
        {"audio": torch.nn.Linear(4, 3), "visual": torch.nn.Linear(5, 3)}
    )
    model = torch.nn.ModuleDict({"encoders": encoders, "head": torch.nn.Linear(6, 2)})
    optimizer = ModulatedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        Modalities(model, audio="encoders.audio", visual="encoders.visual"),
        PMR(**options),
        losses=("joint", *TWO),
    )
    return model, optimizer, Prototypes(2, dict.fromkeys(TWO, 3))


def step(model, optimizer, prototypes, refresh):
    inputs = {"audio": torch.randn(8, 4), "visual": torch.randn(8, 5)}
    targets = torch.arange(8) % 2
    features = {m: encoder(inputs[m]) for m, encoder in model["encoders"].items()}
    if refresh:
        prototypes.accumulate(features, targets)
        prototypes.refresh()
    output = model["head"](torch.cat(list(features.values()), 1))
    out = prototypes(features, targets)
    optimizer.zero_grad()
    optimizer.observe(scores=out.scores)
    joint = torch.nn.functional.cross_entropy(output, targets)
    optimizer.backward({"joint": joint, **out.losses})
    optimizer.step()
    return out


def test_before_the_first_refresh_training_is_plain():
    model, optimizer, prototypes = network()
    step(model, optimizer, prototypes, refresh=False)
    assert optimizer.modulator.last.weights.tolist() == [[1.0, 0.0, 0.0]] * 2


def test_scores_arrive_as_they_are():
    model, optimizer, prototypes = network()
    out = step(model, optimizer, prototypes, refresh=True)
    last = optimizer.modulator.last
    assert torch.equal(last.scores, out.scores)
    slow = out.scores.argmin().item()
    assert last.weights[0, 1 + slow] > 0
    assert last.weights[0, 2 - slow] == 0


def test_a_step_never_reads_a_value_on_the_host():
    with FakeTensorMode():
        parts = network(alpha=2.0)
        for _ in range(2):
            step(*parts, refresh=True)
