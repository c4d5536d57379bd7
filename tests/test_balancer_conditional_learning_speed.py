"""Conditional learning speed: its formula and schedule by hand, and training against plain code."""

import copy
import math

import networks
import pytest
import torch
import torch.nn.functional as F
from dispatched import Ops

from modgrad import Modalities, ModulatedOptimizer
from modgrad.balancers import ConditionalLearningSpeed, RandomRebalancing, Statistics

CPU = torch.device("cpu")
TWO, THREE = ("audio", "visual"), ("audio", "visual", "text")
FUSION = {m: f"{m}_fusion" for m in TWO}
GROUPS = ("audio_fusion", "audio", "visual_fusion", "visual")


def run(balancer, steps, names=GROUPS):
    """Modulations and states of steps given as (gradient, parameter) squared norms by group."""
    state, out = balancer.init(names, 1, CPU), []
    for i, (grads, params) in enumerate(steps):
        norms = [torch.tensor(v, dtype=torch.float64) for v in (grads, params)]
        measured = Statistics(
            torch.tensor(i), torch.tensor(0), grad_sq_norms=norms[0], param_sq_norms=norms[1]
        )
        modulation, state = balancer.update(measured, state)
        out.append((modulation.weights[:, 0].tolist(), state))
    return out


def branches(found):
    """The branch that each step after the first has to re-balance."""
    return [state.branch.item() for _, state in found]


PARAMS = (2.0, 1.0, 1.0, 1.0)
BY_HAND = [((2.0 * t, 1.0, 1.0, 2.0), PARAMS) for t in (1, 2, 3)]
LEANING = ((4.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0))  # audio learns from visual
EQUAL = ((1.0,) * 4, (1.0,) * 4)


def test_by_hand():
    """mu sums to 6, 3 (audio: fusion, own) and 3, 6: log10(6 / 3) - log10(3 / 6)."""
    balancer = ConditionalLearningSpeed(FUSION, warm_up=2)
    found = run(balancer, BY_HAND)
    state = found[-1][1]
    assert state.sums.tolist() == [[3.0, 6.0], [6.0, 3.0]]
    speeds = balancer.speeds(state)
    assert abs(speeds[0] - speeds[1] - 0.60206) < 1e-6
    assert branches(found) == [-1, -1, 0]


def test_swapped_modalities_change_the_sign():
    balancer = ConditionalLearningSpeed(FUSION, warm_up=2)
    swapped = [(g[2:] + g[:2], p[2:] + p[:2]) for g, p in BY_HAND]
    (_, a), (_, b) = run(balancer, BY_HAND)[-1], run(balancer, swapped)[-1]
    assert torch.equal(balancer.speeds(a), balancer.speeds(b).flip(0))
    assert (a.branch, b.branch) == (0, 1)


def test_the_shared_group_counts_as_fusion_of_every_branch():
    balancer = ConditionalLearningSpeed(FUSION, shared="squeeze")
    step = ((1.0, 2.0, 3.0, 4.0, 5.0), (1.0, 1.0, 1.0, 1.0, 2.0))
    _, state = run(balancer, [step], (*GROUPS, "squeeze"))[-1]
    assert state.sums.tolist() == [[2.0, 4.0], [6 / 3, 8 / 3]]  # norms of the union


@pytest.mark.parametrize("window", [1, 2, 5])
def test_schedule(window):
    """A regular step, ``window`` re-balancing ones, a regular step again; the sums stand still."""
    found = run(ConditionalLearningSpeed(FUSION, window=window), [LEANING] * 14)
    period = [-1, *[0] * window]
    assert [-1, *branches(found)] == (period * 14)[:15]
    regular = [b < 0 for b in (period * 14)[:14]]
    for i, (_, state) in enumerate(found):
        count = sum(regular[: i + 1])
        assert state.sums.tolist() == [[count, count], [4 * count, count]]


def test_warm_up_accumulates_and_the_step_after_it_decides():
    found = run(ConditionalLearningSpeed(FUSION, warm_up=3, window=2), [LEANING] * 8)
    assert branches(found) == [-1, -1, -1, 0, 0, -1, 0, 0]
    assert found[3][1].sums[1, 0] == 16


def test_within_the_tolerance_every_step_is_regular():
    step = ((1.02, 1.0, 1.0, 1.0), (1.0,) * 4)  # log10(1.02) = 0.0086
    assert branches(run(ConditionalLearningSpeed(FUSION), [step] * 3)) == [-1] * 3
    tight = ConditionalLearningSpeed(FUSION, tolerance=0.008)
    assert branches(run(tight, [step] * 3)) == [0] * 3
    assert branches(run(ConditionalLearningSpeed(FUSION, tolerance=0.0), [EQUAL] * 2)) == [-1] * 2


def test_the_branch_of_the_largest_speed_of_three():
    names = (*THREE, *(f"{m}_fusion" for m in THREE))
    balancer = ConditionalLearningSpeed({m: f"{m}_fusion" for m in THREE}, remedy="freeze")
    step = ((1.0, 1.0, 1.0, 2.0, 3.0, 1.0), (1.0,) * 6)
    found = run(balancer, [step] * 2, names)
    assert branches(found) == [1, 1]
    assert found[0][0] == [1.0] * 6
    assert found[1][0] == [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]


def test_decay_forgets():
    change = [LEANING] * 20 + [EQUAL] * 20
    patient = ConditionalLearningSpeed(FUSION, tolerance=0.2, window=1)
    forgetful = ConditionalLearningSpeed(FUSION, tolerance=0.2, window=1, decay=0.5)
    assert branches(run(patient, change))[30:32] in ([0, -1], [-1, 0])
    assert branches(run(forgetful, change))[30:] == [-1] * 10
    _, state = run(forgetful, [LEANING, LEANING, EQUAL])[-1]
    assert state.sums.tolist() == [[1.5, 1.5], [3.0, 1.5]]  # the second was no regular step


BAD = {
    "nan": ((math.nan, 1.0, 1.0, 1.0), (1.0,) * 4),
    "inf": ((1.0, 1.0, math.inf, 1.0), (1.0,) * 4),
    "parameters of 0": ((1.0,) * 4, (1.0, 0.0, 1.0, 1.0)),
    "no gradient": ((0.0, 1.0, 1.0, 1.0), (0.0, 1.0, 1.0, 1.0)),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_norms_add_nothing(bad):
    balancer = ConditionalLearningSpeed(FUSION, warm_up=1, window=2, remedy="freeze")
    assert branches(run(balancer, [bad] * 3)) == [-1] * 3
    (_, before), (first, after) = run(balancer, [EQUAL, bad])
    assert torch.equal(before.sums, after.sums)
    assert first == [1.0] * 4
    found = run(balancer, [EQUAL, LEANING, bad, LEANING, LEANING])
    assert [weights for weights, _ in found][2:4] == [[1.0, 1.0, 0.0, 0.0]] * 2
    assert branches(found) == [-1, 0, 0, -1, 0], "a window ends all the same"


def test_zero_gradients_of_one_branch_rebalance_nothing():
    for i in range(4):
        grads = tuple(float(j != i) for j in range(4))
        assert (
            branches(run(ConditionalLearningSpeed(FUSION), [(grads, (1.0,) * 4)] * 2)) == [-1] * 2
        )


def test_a_norm_outside_all_branches_does_no_harm():
    step = ((*LEANING[0], math.nan), (*LEANING[1], 0.0))
    found = run(ConditionalLearningSpeed(FUSION), [step], (*GROUPS, "text"))
    assert branches(found) == [0]


def splitmix64(step, seed):
    """As published, on unsigned 64-bit integers; the result as a signed one."""
    mask = 2**64 - 1
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    z ^= z >> 31
    return z - 2**64 if z >= 2**63 else z


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_random_branches(seed):
    balancer = RandomRebalancing(FUSION, seed=seed)
    found = [balancer.init(GROUPS, 1, CPU).branch.item(), *branches(run(balancer, [EQUAL] * 500))]
    assert found == [splitmix64(step, seed) % 3 - 1 for step in range(501)]
    for branch in (-1, 0, 1):  # expected 167, deviation sqrt(501 * 2 / 9) = 10.6: five of them
        assert abs(found.count(branch) - 167) < 53


def setup(balancer, device="cpu", modalities=TWO, dtype=torch.float32, lr=0.1, **options):
    model = networks.CrossModal(modalities).to(device, dtype)
    optimizer = ModulatedOptimizer(
        torch.optim.SGD(model.parameters(), lr=lr),
        Modalities(model, **model.specs()),
        balancer,
        **options,
    )
    return model, optimizer


def train_step(model, optimizer, inputs, targets):
    """One step of balanced training; the branch it re-balanced."""
    branch = optimizer.modulator.state.branch.clone()
    outputs = model(inputs, branch)
    optimizer.zero_grad()
    sum(F.cross_entropy(z, targets) for z in outputs.values()).backward()
    optimizer.step()
    return branch


def plain_forward(model, inputs, branch, memory):
    """The network with the gates of one branch replaced by an if; counts gates into ``memory``."""
    features = {m: layer(inputs[m]).tanh() for m, layer in model.branches.items()}
    hidden = F.relu(model.mmtm.squeeze(torch.cat(list(features.values()), 1)))
    outputs = {}
    for m, x in features.items():
        if m == branch:
            gate = torch.stack(memory[m]).mean(0)
        else:
            gate = torch.sigmoid(model.mmtm.excite[m](hidden))
        if branch is None:
            memory[m] += gate.detach().unbind()
        outputs[m] = model.heads[m](x * gate)
    return outputs


def accumulate(model, total):
    """Squared norms parameter by parameter, into groups by what the names hold."""
    norms = {}
    for name, p in model.named_parameters():
        if "mmtm" in name:
            keys = [(m, "fusion") for m in TWO if m in name or "squeeze" in name]
        else:
            keys = [(m, "own") for m in TWO if m in name]
        for key in keys:
            grad, size = norms.get(key, (0.0, 0.0))
            norms[key] = (
                grad + p.grad.double().square().sum().item(),
                size + p.detach().double().square().sum().item(),
            )
    for key, (grad, size) in norms.items():
        total[key] = total.get(key, 0.0) + grad / size


def plain_training(model, sgd, batches, tolerance, window, warm_up):
    """The authors' loop with the right means: every decision made on the host."""
    memory, total = {m: [] for m in TWO}, {}
    branch, left, taken = None, 0, []
    for step, (inputs, targets) in enumerate(batches):
        taken.append(branch)
        outputs = plain_forward(model, inputs, branch, memory)
        sgd.zero_grad(set_to_none=False)
        (
            F.cross_entropy(outputs[TWO[0]], targets) + F.cross_entropy(outputs[TWO[1]], targets)
        ).backward()
        if branch is None:
            accumulate(model, total)
            s = [math.log10(total[m, "fusion"] / total[m, "own"]) for m in TWO]
            if step >= warm_up and abs(s[0] - s[1]) > tolerance:
                branch, left = (TWO[0] if s[0] > s[1] else TWO[1]), window
        else:
            left -= 1
            if left == 0:
                branch = None
        sgd.step()
    return taken, memory


@pytest.mark.parametrize(("window", "warm_up"), [(5, 0), (2, 4)])
def test_twenty_steps_equal_the_loop_over_parameters(backend, device, window, warm_up):
    balancer = ConditionalLearningSpeed(FUSION, shared="squeeze", window=window, warm_up=warm_up)
    model, optimizer = setup(balancer, device, backend=backend)
    loop = copy.deepcopy(model)
    batches = [networks.batch(TWO, device=device) for _ in range(20)]
    sgd = torch.optim.SGD(loop.parameters(), lr=0.1)
    taken, memory = plain_training(loop, sgd, batches, 0.01, window, warm_up)
    found = [train_step(model, optimizer, *batch).item() for batch in batches]
    assert found == [-1 if m is None else TWO.index(m) for m in taken]
    assert 0 < sum(b < 0 for b in found) < 20
    # 20 steps, each rounded in some tens of operations: 20 * 2^-24 = 1.2e-6 of the change, lr 0.1
    for a, b in zip(model.parameters(), loop.parameters(), strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm()
    means = torch.cat([torch.stack(memory[m]).mean(0) for m in TWO])
    torch.testing.assert_close(model.mmtm.means, means, rtol=0, atol=1e-6)


def test_swapped_modalities_change_the_sign_in_training():
    balancers = [
        ConditionalLearningSpeed({m: FUSION[m] for m in order}, shared="squeeze")
        for order in (TWO, TWO[::-1])
    ]
    model, optimizer = setup(balancers[0], dtype=torch.float64)
    twin, other = setup(balancers[1], modalities=TWO[::-1], dtype=torch.float64)
    state = model.state_dict()
    state["mmtm.squeeze.weight"] = state["mmtm.squeeze.weight"].roll(8, 1)
    twin.load_state_dict(state)
    taken = []
    for _ in range(12):
        inputs, targets = networks.batch(TWO, dtype=torch.float64)
        taken.append(train_step(model, optimizer, inputs, targets).item())
        assert taken[-1] == [1, 0, -1][train_step(twin, other, inputs, targets).item()]
        states = optimizer.modulator.state, other.modulator.state
        a, b = (balancers[0].speeds(state) for state in states)
        torch.testing.assert_close(a[0] - a[1], b[1] - b[0], rtol=1e-10, atol=0)
    assert set(taken) != {-1}
    torch.testing.assert_close(twin.mmtm.means, model.mmtm.means.roll(8), rtol=1e-12, atol=0)


def test_a_branch_that_is_rebalanced_trains_without_the_other():
    """Gates: no gradient reaches its excitation, and the other modality's input is not felt."""
    model, optimizer = setup(ConditionalLearningSpeed(FUSION, shared="squeeze", tolerance=0.0))
    inputs, targets = networks.batch(TWO)
    assert train_step(model, optimizer, inputs, targets) == -1
    branch = train_step(model, optimizer, inputs, targets).item()
    mine, other = TWO[branch], TWO[1 - branch]
    assert all(p.grad.count_nonzero() == 0 for p in model.mmtm.excite[mine].parameters())
    assert all(p.grad.count_nonzero() > 0 for p in model.mmtm.excite[other].parameters())
    chosen = torch.tensor(branch)
    before = model(inputs, chosen)[mine]
    inputs[other] = inputs[other] + 1
    assert torch.equal(model(inputs, chosen)[mine], before)
    assert not torch.equal(
        model(inputs)[mine], model(networks.batch(TWO)[0] | {mine: inputs[mine]})[mine]
    )


@pytest.mark.parametrize("kind", [ConditionalLearningSpeed, RandomRebalancing])
def test_freeze_holds_the_groups_of_other_branches(backend, device, kind):
    options = {"seed": 5} if kind is RandomRebalancing else {"tolerance": 0.0, "shared": "squeeze"}
    model, optimizer = setup(kind(FUSION, remedy="freeze", **options), device, backend=backend)
    batch = networks.batch(TWO, device=device)
    for _ in range(6):
        branch = optimizer.modulator.state.branch.item()
        before = copy.deepcopy(model.state_dict())
        outputs = model(batch[0])
        optimizer.zero_grad()
        sum(F.cross_entropy(z, batch[1]) for z in outputs.values()).backward()
        optimizer.step()
        for name, p in model.named_parameters():
            frozen = branch >= 0 and TWO[1 - branch] in name
            assert torch.equal(p, before[name]) == frozen, name
    assert branch >= 0


def test_three_branches_train():
    fusion = {m: f"{m}_fusion" for m in THREE}
    balancer = ConditionalLearningSpeed(fusion, shared="squeeze", window=2)
    model, optimizer = setup(balancer, modalities=THREE)
    taken = [train_step(model, optimizer, *networks.batch(THREE)).item() for _ in range(7)]
    assert [b < 0 for b in taken] == [True, False, False] * 2 + [True]
    assert model.mmtm.count == 3 * 9


def test_a_checkpoint_within_a_window_resumes():
    balancer = ConditionalLearningSpeed(FUSION, shared="squeeze", tolerance=0.0, window=4)
    model, optimizer = setup(balancer)
    batches = [networks.batch(TWO) for _ in range(9)]
    for batch in batches[:3]:
        train_step(model, optimizer, *batch)
    assert optimizer.modulator.state.left == 2
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other, resumed = setup(balancer)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for batch in batches[3:]:
        assert train_step(model, optimizer, *batch) == train_step(other, resumed, *batch)
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("remedy", ["gates", "freeze"])
def test_nothing_is_read_on_the_host_in_a_step(backend, device, remedy):
    balancer = ConditionalLearningSpeed(FUSION, shared="squeeze", remedy=remedy)
    model, optimizer = setup(balancer, device, backend=backend)
    batch = networks.batch(TWO, device=device)
    for _ in range(2):  # a regular and a re-balancing one
        with Ops() as ops:
            branch = train_step(model, optimizer, *batch)
        assert ops.reads == 0
    assert branch >= 0


def test_unknown_groups():
    with pytest.raises(ValueError, match=r"names \['visual_fusion'\], allowed: audio, visual"):
        ConditionalLearningSpeed(FUSION).init(("audio", "visual", "audio_fusion"), 1, CPU)
    with pytest.raises(ValueError, match=r"names \['squeeze'\], allowed: audio_fusion"):
        ConditionalLearningSpeed(FUSION, shared="squeeze").init(GROUPS, 1, CPU)
