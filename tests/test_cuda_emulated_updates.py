"""The CUDA kernels of the fused updates, run on the CPU by tests/native/emulator."""

from itertools import product

import inputs
import numpy as np
import pytest
import torch
from fences import fenced, fences_stand

from modgrad import rules
from modgrad.backends import reference
from modgrad.backends.retained import RetainedList, handed_over
from modgrad.balancers import EqualNorms

# Around packs of 2 to 8 elements, blocks of 256 threads and chunks of 16384 elements.
SIZES = [0, 1, 3, 7, 255, 257, 16383, 16385, 40_001]
WEIGHTS = torch.tensor([0.375, 1.0, 0.0, 1.7])
NOISE = torch.tensor([1.0, 0.0, 0.5, 2.0])
# Parameter and state; two launches more than a list of one pair.
TYPES = [(d, s) for d in inputs.DTYPES for s in dict.fromkeys((d, torch.float32))]
SGD = {
    "plain": (0.0, 0.0, 0.0, False, False),
    "momentum": (0.9, 0.1, 0.01, False, False),
    "nesterov": (0.9, 0.0, 0.01, True, False),
    "first": (0.9, 0.1, 0.0, False, True),
}
ADAM = {"adam": (0.0, False), "l2": (0.01, False), "adamw": (0.01, True)}
OPTIMIZERS = [*SGD, *ADAM, "amsgrad"]


class Update:
    """Parameters, gradients and states of one call; ``run`` may be called on a copy."""

    def __init__(self, optimizer, shapes):
        """``shapes``: size, parameter and state dtype, and offsets of parameter and gradient."""
        self.optimizer, self.shapes = optimizer, shapes
        make = lambda n, dtype, offset: fenced(torch.randn(n).to(dtype), offset)  # noqa: E731
        self.params = [make(n, d, a) for n, d, _, a, _ in shapes]
        self.grads = [make(n, d, b) for n, d, _, _, b in shapes]
        self.group = [i % 5 - 1 for i in range(len(shapes))]
        count = {"plain": 0, "momentum": 1, "nesterov": 1, "first": 1, "amsgrad": 3}
        self.states = [
            # no second moment near 0, by whose root an error would grow
            [fenced((torch.rand(n) + 0.5).to(s), a) for n, _, s, a, _ in shapes]
            for _ in range(count.get(optimizer, 2))
        ]
        self.steps = [torch.tensor(float(7 * i % 40)) for i in range(len(shapes))]

    def copy(self):
        other = Update.__new__(Update)
        other.__dict__ |= self.__dict__
        place = lambda t: fenced(t, t.storage_offset() - 8)  # noqa: E731
        other.params = [place(t) for t in self.params]
        other.states = [[place(t) for t in state] for state in self.states]
        other.steps = [t.clone() for t in self.steps]
        return other

    def run(self, ops, weights=WEIGHTS, maximize=False, **options):
        if self.optimizer in SGD:
            momentum, dampening, decay, nesterov, first = SGD[self.optimizer]
            states = self.states[0] if self.states else []
            ops.modulated_sgd_(
                *(self.params, self.grads, states, self.group, weights, 0.1, momentum),
                *(dampening, decay, nesterov, first, maximize),
                **options,
            )
        else:
            decay, decoupled = ADAM.get(self.optimizer, (0.01, True))
            largest = self.states[2] if len(self.states) > 2 else []
            ops.modulated_adam_(
                *(self.params, self.grads, *self.states[:2], largest, self.steps, self.group),
                *(weights, 0.1, 0.9, 0.99, 1e-8, decay, decoupled, maximize),
                **options,
            )
        return self

    def tensors(self):
        return [*self.params, *(t for state in self.states for t in state), *self.steps]

    def check_against(self, expected, before, noise=False):
        """The same up to a few roundings of the largest value that enters an element's sums."""
        for i, (n, dtype, *_) in enumerate(self.shapes):
            if n == 0:
                continue
            x = before.grads[i].double().abs().max().item()
            if noise:
                x *= 15  # |z| <= 7, noise up to 2, and a spread below the largest
            # normals are of float32
            wide = torch.float64 if dtype == torch.float64 and not noise else torch.float32
            for mine, theirs, old in zip(
                (self.params, *self.states),
                (expected.params, *expected.states),
                (before.params, *before.states),
                strict=True,
            ):
                a, b = mine[i].double(), theirs[i].double()
                largest = max(b.abs().max(), old[i].double().abs().max()).item() + max(x, x * x)
                # at most 16 operations, then one rounding
                eps = 16 * inputs.EPS[wide] + inputs.EPS[mine[i].dtype]
                assert (a - b).abs().max().item() <= eps * largest
        assert self.steps == expected.steps
        assert fences_stand([t for t in self.tensors() if t.dim()])


def every_type(n):
    """All pairs of types, aligned, apart from a boundary, and apart from their gradients."""
    offsets = [(0, 0), (1, 1), (4, 4), (0, 3)]
    return [(n, d, s, a, b) for (d, s), (a, b) in product(TYPES, offsets)]


def many(count, types=TYPES):
    return [
        ((0, 1, 3, 6, 33)[i % 5], *types[i % len(types)], i % 9, (i + i // 9) % 9)
        for i in range(count)
    ]


# Launches take 64 tensors or 430, and there are as many launches as it takes.
LISTS = [every_type(n) for n in SIZES] + [many(65), many(900)]
IDS = [f"every_type({n})" for n in SIZES] + ["many(65)", "many(900)"]


def scalars(**values):
    return {name: torch.tensor([value]) for name, value in values.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("shapes", LISTS, ids=IDS)
def test_update_equals_the_reference(ops, optimizer, shapes):
    before = Update(optimizer, shapes)
    found, expected = before.copy().run(ops), before.copy().run(reference)
    found.check_against(expected, before)


class Retaining:
    """The updates of ``ops``, given lists that are retained."""

    def __init__(self, ops):
        self.ops = ops

    def __getattr__(self, op):
        def run(params, grads, *rest, **options):
            lists = [
                RetainedList(x) if isinstance(x, list) and all(map(torch.is_tensor, x)) else x
                for x in rest
            ]
            retained = RetainedList(params), grads, *lists
            handed_over(op, retained)  # once before
            name, arguments, _kept = handed_over(op, retained)
            assert name == f"{op}retained_"
            getattr(self.ops, name)(*arguments, **options)

        return run


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("shapes", [LISTS[6], LISTS[-1]], ids=[IDS[6], IDS[-1]])
def test_retained_lists_give_the_same_bits(ops, optimizer, shapes):
    before = Update(optimizer, shapes)
    found, expected = before.copy().run(Retaining(ops)), before.copy().run(ops)
    for a, b in zip(found.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("shapes", [LISTS[5], LISTS[7], many(900)], ids=[IDS[5], IDS[7], IDS[-1]])
def test_every_option_equals_the_reference(ops, optimizer, shapes):
    before = Update(optimizer, shapes)
    sq_norms = [torch.full((2, 4), torch.nan, dtype=torch.float64) for _ in range(2)]
    options = {
        **scalars(lr_tensor=0.05, grad_scale=3.0, found_inf=0.0),
        **{"maximize": True, "scale_update": True, "noise": NOISE},
        **{"seed": torch.tensor(2**62 + 12345), "stream": [3 * i for i in range(len(shapes))]},
    }
    found = before.copy().run(ops, sq_norms=sq_norms[0], **options)
    expected = before.copy().run(reference, sq_norms=sq_norms[1], **options)
    found.check_against(expected, before, noise=True)
    # no term is negative, so that each addition adds eps at most: some 100 follow each other
    rtol = (200 + len(shapes)) * np.finfo(np.float64).eps
    torch.testing.assert_close(*sq_norms, rtol=rtol, atol=0)


@pytest.mark.parametrize("value", [1.0, -1.0, float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("optimizer", ["momentum", "amsgrad"])
def test_a_step_that_is_skipped_changes_nothing(ops, optimizer, value):
    before = Update(optimizer, many(100))
    sq_norms = torch.arange(8.0).double().view(2, 4)
    found = before.copy().run(
        ops, **scalars(found_inf=value), noise=NOISE, seed=torch.tensor(3), sq_norms=sq_norms
    )
    assert all(torch.equal(a, b) for a, b in zip(found.tensors(), before.tensors(), strict=True))
    assert sq_norms.flatten().tolist() == list(range(8))


def test_norms_of_more_groups_than_one_launch_adds(ops):
    params = [torch.full((1 + i % 3,), float(i)) for i in range(100)]
    grads = [2 * p for p in params]
    expected = np.zeros((2, 4100))
    expected[1, ::41] = [i * i * (1 + i % 3) for i in range(100)]
    expected[0] = 4 * expected[1]
    sq_norms = torch.full((2, 4100), torch.nan, dtype=torch.float64)
    group = [41 * i for i in range(100)]
    sgd = (params, grads, [], group, torch.ones(4100), 0.1, 0.0, 0.0, 0.0, False, False, False)
    ops.modulated_sgd_(*sgd, sq_norms=sq_norms)
    assert sq_norms.tolist() == expected.tolist()


@pytest.mark.parametrize("optimizer", ["plain", "nesterov", "adamw", "amsgrad"])
def test_same_bits_in_every_schedule(emulator, optimizer):
    before = Update(optimizer, [*every_type(40_001)[::5], *many(70)])
    results = []
    for seed in range(3):
        emulator.seed(seed)
        sq_norms = torch.zeros(2, 4, dtype=torch.float64)
        found = before.copy().run(
            emulator.ops, noise=NOISE, seed=torch.tensor(5), sq_norms=sq_norms
        )
        results.append([*found.tensors(), sq_norms])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_infinite_and_missing_numbers_stay_where_they_are(ops):
    shapes = many(20, [(torch.float32, torch.float32)])
    before = Update("amsgrad", shapes)
    before.grads[4][7], before.grads[9][8] = float("inf"), float("nan")
    found, expected = before.copy().run(ops), before.copy().run(reference)
    for a, b in zip(found.params, expected.params, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())
    assert sum((~p.isfinite()).sum() for p in found.params) == 2


RULE = EqualNorms(0.5, cap=3.0).rule


def by_rule(update, ops, weights, **options):
    """The update with the weights of its gradients' norms, which it leaves in ``weights``."""
    return update.copy().run(ops, weights, rule=RULE.name, parameters=RULE.parameters, **options)


@pytest.mark.parametrize("optimizer", ["plain", "nesterov", "adamw", "amsgrad"])
@pytest.mark.parametrize("shapes", [LISTS[5], LISTS[7], many(900)], ids=[IDS[5], IDS[7], IDS[-1]])
@pytest.mark.parametrize("M", [4, 9])
def test_weights_by_a_rule(ops, optimizer, shapes, M):
    before = Update(optimizer, shapes)
    found, exact = torch.full((M,), torch.nan), torch.full((M,), torch.nan)
    sq_norms = torch.full((2, M), torch.nan, dtype=torch.float64)
    options = {**scalars(grad_scale=3.0, found_inf=0.0), "scale_update": M == 9}
    update = by_rule(before, ops, found, sq_norms=sq_norms, **options)
    by_rule(before, reference, exact, **options)
    # float64 sums, rounded once
    torch.testing.assert_close(found, exact, rtol=2**-23, atol=0)
    torch.testing.assert_close(
        found, rules.weights(RULE, sq_norms[0, :, None, None])[0][:, 0], rtol=2**-23, atol=0
    )
    assert (found[:4] != 1).any()
    expected = before.copy().run(ops, found.clone(), **options)
    assert all(map(torch.equal, update.tensors(), expected.tensors()))


@pytest.mark.parametrize("M", [4, 9])
@pytest.mark.parametrize("optimizer", ["momentum", "amsgrad"])
def test_a_rule_in_a_step_that_is_skipped_changes_nothing(ops, optimizer, M):
    before, weights = Update(optimizer, many(100)), torch.full((M,), 7.0)
    found = by_rule(before, ops, weights, **scalars(found_inf=1.0))
    assert all(map(torch.equal, found.tensors(), before.tensors()))
    assert (weights == 7).all()


def test_a_rule_leaves_gradients_alone_that_are_not_finite(ops):
    before, weights = Update("plain", many(20)), torch.full((4,), torch.nan)
    before.grads[4][7] = float("inf")
    by_rule(before, ops, weights)
    assert (weights == 1).all()
