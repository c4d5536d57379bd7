"""OGM-GE by the numbers: the jump at equal scores, and the size of the noise."""

import networks
import pytest
import torch
import torch.nn.functional as F

from modgrad import OGM, Modalities, ModulatedOptimizer
from modgrad.balancers import Statistics

TWO = ("audio", "visual")


@pytest.mark.parametrize(("alpha", "low"), [(0.1, 0.900), (0.3, 0.709), (0.8, 0.336)])
def test_weights_jump_where_scores_part(alpha, low):
    """From 1 to 1 - tanh(alpha), at a ratio one rounding above 1."""

    def weigh(balancer, audio):
        at, scores = torch.tensor(0), torch.tensor([audio, 0.5])
        state = balancer.init(TWO, 1, torch.device("cpu"))
        return balancer.update(Statistics(at, at, scores=scores), state)[0].weights[:, 0].tolist()

    above = 0.5 * (1 + 2**-23)
    assert weigh(OGM(alpha), 0.5) == [1.0, 1.0]
    assert weigh(OGM(alpha), above) == [pytest.approx(low, abs=5e-4), 1.0]
    assert weigh(OGM(alpha, form="continuous"), above) == [pytest.approx(1.0, abs=1e-6), 1.0]


def test_noise_is_as_large_as_the_gradient(backend, device):
    """Both modalities, the scaled one too: the unscaled gradient's deviation within 3 %."""
    torch.manual_seed(0)
    model = networks.LateFusion(TWO)
    model.encoders["audio"] = torch.nn.Linear(networks.WIDTHS["audio"] * 400, 6)  # 12,000 entries
    model.encoders["visual"] = torch.nn.Linear(networks.WIDTHS["visual"] * 300, 6)
    model.to(device)
    optimizer = ModulatedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        Modalities(model, **model.specs()),
        OGM(0.3, noise=1.0),
        fused=False,  # the gradients are looked at
        backend=backend,
    )
    inputs, targets = networks.batch(TWO, device=device)
    inputs = {"audio": inputs["audio"].repeat(1, 400), "visual": inputs["visual"].repeat(1, 300)}
    optimizer.observe(scores=torch.tensor([0.6, 0.4], device=device))
    F.cross_entropy(model(inputs)[1], targets).backward()
    before = {m: e.weight.grad.double() for m, e in model.encoders.items()}
    optimizer.step()
    weights = optimizer.modulator.last.weights.double()
    assert weights[0] < weights[1] == 1
    for i, (m, encoder) in enumerate(model.encoders.items()):
        noise = encoder.weight.grad.double() - weights[i] * before[m]
        # the spread of n draws is known to 1 / sqrt(2 n) = 0.65 %, their mean to 0.9 %
        assert noise.std().item() == pytest.approx(before[m].std().item(), rel=0.03)
        assert abs(noise.mean().item()) < 0.04 * before[m].std().item()
