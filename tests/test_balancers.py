"""What holds for every balancer, driven by the table in cases.py."""

import copy
import dataclasses
import pickle

import pytest
import torch
from cases import BAD, CASES
from torch._subclasses.fake_tensor import FakeTensorMode

from modgrad.balancers import METHODS, WRAPPERS, Between, Every, FixedWeights, Smoothed, Statistics
from modgrad.balancers.base import MEASURED, map_state, state_tensors

CPU = torch.device("cpu")
ROWS = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def statistics(case, step=0):
    dtypes = dict.fromkeys(("scores", "response_losses", "losses"), torch.float32)
    values = {
        name: torch.tensor(v, dtype=dtypes.get(name, torch.float64))
        for name, v in case.statistics.items()
    }
    if "tensor_gram" in values:  # one tensor a modality
        values["tensor_group"] = torch.arange(len(case.modalities))
    return Statistics(torch.tensor(step), torch.tensor(0), **values)


def start(case):
    return case.balancer.init(case.modalities, case.num_losses, CPU)


def weights(modulation, case):
    """[M] for one loss; [K] or [M, K] for several, as the modulator reads them."""
    M, K = len(case.modalities), case.num_losses
    if modulation.weights.dim() == 1:
        return modulation.weights.float()
    full = modulation.weights.broadcast_to(M, K).float()
    return full[:, 0] if K == 1 else full


def test_every_balancer_has_a_row():
    assert {type(case.balancer) for case in CASES.values()} == {*METHODS, *WRAPPERS}


@ROWS
def test_values_by_hand(case):
    modulation, _ = case.balancer.update(statistics(case), start(case))
    torch.testing.assert_close(weights(modulation, case), torch.tensor(case.weights))
    scale = modulation.tensor_scale
    if case.tensor_scale is None:
        assert scale is None
    else:
        torch.testing.assert_close(scale, torch.tensor(case.tensor_scale))
    if case.noise is None:
        assert modulation.noise is None
    else:
        assert modulation.noise.tolist() == case.noise


@ROWS
def test_needs_are_measured_statistics_and_enough(case):
    assert case.balancer.needs <= MEASURED
    assert set(case.statistics) == case.balancer.needs


@ROWS
def test_state_keeps_its_type_shapes_and_dtypes(case):
    state = start(case)
    _, after = case.balancer.update(statistics(case), state)
    assert type(after) is type(state)
    before, now = state_tensors(state), state_tensors(after)
    assert list(before) == list(now)
    for name in before:
        assert (now[name].shape, now[name].dtype) == (before[name].shape, before[name].dtype), name


@ROWS
def test_update_is_pure(case):
    state, measured = start(case), statistics(case)
    kept, kept_measured = copy.deepcopy(state), copy.deepcopy(measured)
    first, _ = case.balancer.update(measured, state)
    second, _ = case.balancer.update(measured, state)
    assert torch.equal(first.weights, second.weights)
    for a, b in zip(state_tensors(state).values(), state_tensors(kept).values(), strict=True):
        assert torch.equal(a, b)
    for name in case.statistics:
        torch.testing.assert_close(
            getattr(measured, name), getattr(kept_measured, name), equal_nan=True
        )


@ROWS
def test_permuting_modalities_permutes_weights(case):
    order = list(reversed(range(len(case.modalities))))
    M, K = len(order), case.num_losses
    losses = list(range(K))
    if case.loss_per_modality:
        losses = [0, *(i + first for first in range(1, K, M) for i in order)]

    def permute(name, v):
        if name == "losses":
            return [v[k] for k in losses]
        if name in ("gram", "tensor_gram"):
            return [[[v[i][k][j] for j in losses] for k in losses] for i in order]
        return [v[i] for i in order]

    permuted = case._replace(
        modalities=tuple(case.modalities[i] for i in order),
        statistics={name: permute(name, v) for name, v in case.statistics.items()},
    )
    plain, _ = case.balancer.update(statistics(case), start(case))
    other, _ = case.balancer.update(statistics(permuted), start(permuted))
    expected = weights(plain, case)
    if plain.weights.dim() == 1:  # whole losses
        expected = expected[losses]
    else:
        expected = expected[order] if expected.dim() == 1 else expected[order][:, losses]
    torch.testing.assert_close(weights(other, permuted), expected)
    if plain.tensor_scale is not None:
        torch.testing.assert_close(other.tensor_scale, plain.tensor_scale[order])


@ROWS
def test_never_reads_a_value_on_the_host(case):
    with FakeTensorMode():
        state = start(case)
        for step in range(2):
            _, state = case.balancer.update(statistics(case, step), state)


def perturbed(measured, generator):
    """Other statistics of the same kind; a gram stays one of real gradients."""

    def change(name, value):
        if name in ("gram", "tensor_gram"):
            root = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            return root @ root.transpose(1, 2)
        return torch.rand(value.shape, generator=generator, dtype=value.dtype) + 0.01

    present = {n: v for n in MEASURED if (v := getattr(measured, n)) is not None}
    return dataclasses.replace(measured, **{n: change(n, v) for n, v in present.items()})


@ROWS
def test_state_resumes_in_mid_run(case):
    generator = torch.Generator().manual_seed(0)
    state = start(case)
    for step in range(6):
        measured = perturbed(statistics(case, step), generator)
        if step == 3:
            saved = {name: t.clone() for name, t in state_tensors(state).items()}
            tensors = iter(saved.values())
            state = map_state(lambda _, t=tensors: next(t), start(case))
            assert list(state_tensors(state)) == list(saved)
        modulation, state = case.balancer.update(measured, state)
        assert weights(modulation, case).isfinite().all()


@ROWS
def test_balancers_are_values(case):
    assert (
        pickle.loads(pickle.dumps(case.balancer)) == case.balancer == copy.deepcopy(case.balancer)
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        case.balancer.alpha = 3


@pytest.mark.parametrize(("make", "error", "match"), BAD)
def test_bad_hyperparameters(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_bad_modalities():
    with pytest.raises(ValueError, match=r"names \['smell'\], allowed: audio, visual"):
        FixedWeights({"smell": 1.0}).init(("audio", "visual"), 1, CPU)
    with pytest.raises(ValueError, match="allowed: at least 2"):
        CASES["OGM"].balancer.init(("audio",), 1, CPU)


class Counting:
    """A balancer whose weight is the number of updates it has seen."""

    needs = frozenset()

    def init(self, modalities, num_losses, device):
        return Smoothed(FixedWeights({})).init(modalities, num_losses, device)

    def update(self, statistics, state):
        from modgrad.balancers import Modulation

        state = state._replace(mass=state.mass + 1)
        return Modulation(state.mass.expand(2, 1)), state


def run(balancer, steps, unit="step"):
    state = balancer.init(("audio", "visual"), 1, CPU)
    out = []
    for i in range(steps):
        at = torch.tensor(i), torch.tensor(0)
        modulation, state = balancer.update(
            Statistics(*(at if unit == "step" else at[::-1])), state
        )
        out.append(round(modulation.weights[0, 0].item(), 6))
    return out


def test_between_opens_and_closes_and_state_stands_still_outside():
    assert run(Between(Counting(), 2, 5), 7) == [1, 1, 1, 2, 3, 1, 1]
    assert run(Between(Counting(), 2, 5, unit="epoch"), 7, "epoch") == [1, 1, 1, 2, 3, 1, 1]
    assert run(Between(Counting(), 1), 4) == [1, 1, 2, 3]


def test_every_holds_weights_and_does_not_show_the_steps_between():
    assert run(Every(Counting(), 3), 7) == [1, 1, 1, 2, 2, 2, 3]


def test_smoothed_is_the_unbiased_moving_average():
    found = run(Smoothed(Counting(), 0.5), 3)
    assert found == [
        1,
        round((0.25 * 1 + 0.5 * 2) / 0.75, 6),
        round((0.125 + 0.5 + 1.5) / 0.875, 6),
    ]
