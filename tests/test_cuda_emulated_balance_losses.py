"""``balance_`` of several losses in CUDA, in one launch and in parts, run by the emulator."""

from functools import partial
from itertools import product
from typing import NamedTuple

import inputs
import pytest
import torch
from at_once import VARIANTS, is_at_once
from fences import copies, fenced, fences_stand
from test_cuda_emulated import every_view, many, of_losses
from test_rules import compare
from torch import Tensor

from modgrad import rules
from modgrad.backends import reference
from modgrad.balancers import EqualNorms, GradNorm, MMPareto, PCGrad

pytestmark = pytest.mark.usefixtures("one_thread")

COMPARING = pytest.mark.parametrize(
    "balancer", [MMPareto(), PCGrad(), GradNorm()], ids=lambda b: b.rule.name
)
LISTS = [(every_view, n) for n in (1, 257, 40_001)] + [(many, 300)]


class Several(NamedTuple):
    """Gradients of K losses, what to balance them by, and where the sums go."""

    out: list[Tensor]
    places: tuple[list[Tensor], list[int], list[int], list[int]]
    size: tuple[int, int]
    rule: rules.Rule
    losses: Tensor | None
    state: list[Tensor]

    @classmethod
    def of(cls, tensors, M, K, balancer, grads, tensor, loss):
        """Outputs like ``tensors``. All are near to one another, as on a GPU."""
        near = copies([*tensors, *grads])
        places = near[len(tensors) :], tensor, loss, inputs.groups(len(tensors), M)
        count = rules.check(balancer.rule).num_states
        losses = torch.rand(K) + 0.1 if count else None
        state = [torch.rand(K) + 0.1 for _ in range(count)]
        return cls(near[: len(tensors)], places, (M, K), balancer.rule, losses, state)

    @classmethod
    def with_gaps(cls, tensors, M, K, balancer, apart=0):
        """A loss leaves out every fifth tensor."""
        return cls.of(tensors, M, K, balancer, *of_losses(tensors, K, apart))

    @classmethod
    def from_loss(cls, first, tensors, M, K, balancer):
        """Every tensor has a gradient of every loss from ``first`` on."""
        places = list(product(range(len(tensors)), range(first, K)))
        grads = [fenced(torch.randn_like(tensors[p]), p % 9) for p, _ in places]
        return cls.of(tensors, M, K, balancer, grads, *map(list, zip(*places, strict=True)))

    def run(self, ops):
        rule = self.rule.name, self.rule.parameters
        return ops.balance_(self.out, *self.places, *self.size, *rule, self.losses, self.state)

    def check(self, ops):
        """Compares with the definition, and returns copies of all that was written."""
        for out in self.out:
            out.fill_(torch.nan)
        gram, weights, new = self.run(ops)
        assert torch.equal(gram, ops.group_gram(*self.places, *self.size))
        exact, exact_new = rules.weights(self.rule, gram, self.losses, tuple(self.state))
        compare(weights, exact)
        for a, b in zip(new, exact_new, strict=True):
            compare(a, b)
        combined = [out.clone() for out in self.out]
        reference.combine_(combined, *self.places, weights)
        assert all(map(torch.equal, self.out, combined))
        assert fences_stand([*self.out, *self.places[0]])
        return gram, weights, new, *combined


@pytest.mark.parametrize("parts", LISTS, ids=lambda parts: f"{parts[0].__name__}({parts[1]})")
@pytest.mark.parametrize("K", [2, 3, 5, 9])
@COMPARING
def test_the_sums_are_those_of_the_parts(ops, variant, balancer, K, parts):
    make, number = parts
    Several.with_gaps(make(number), K - 1, K, balancer, apart=K % 2).check(ops)


def test_one_loss_to_other_tensors(ops, variant):
    Several.with_gaps(every_view(300), 3, 1, EqualNorms()).check(ops)


@COMPARING
def test_same_bits_at_once_and_in_parts_and_in_every_schedule(emulator, monkeypatch, balancer):
    tensors = [t for n in (5, 257, 40_001) for t in every_view(n)[::5]] + many(60)
    several, found = Several.with_gaps(tensors, 2, 3, balancer, apart=1), []
    for choice in VARIANTS:
        monkeypatch.setenv("MODGRAD_COOPERATIVE", choice)
        assert is_at_once(emulator, partial(several.run, emulator.ops)) == (choice == "1")
        for seed, resident in product(range(2), [1, 2, 3] if choice == "1" else [3]):
            emulator.seed(seed)
            with emulator.resident(resident):
                found.append(several.check(emulator.ops))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


# A parameter and its gradients, 512 or 4992 tensors.
@pytest.mark.parametrize(
    ("count", "K", "fits"),
    [
        (170, 2, True),
        (171, 2, True),
        (1664, 2, True),
        (1665, 2, False),
        (998, 4, True),
        (999, 4, False),
    ],
)
def test_as_many_tensors_as_one_launch_holds(emulator, monkeypatch, count, K, fits):
    monkeypatch.setenv("MODGRAD_COOPERATIVE", "1")
    tensors = [fenced(torch.randn(1 + i % 5).to(inputs.DTYPES[i % 4]), i % 9) for i in range(count)]
    tensors += [fenced(torch.randn(0), 1)] * 5
    several = Several.from_loss(0, tensors, 2, K, PCGrad())
    several.check(emulator.ops)
    assert is_at_once(emulator, partial(several.run, emulator.ops)) == fits


def alike(count):
    return [fenced(torch.randn(9), i % 9) for i in range(count)]


@pytest.mark.parametrize(
    ("make", "fits"),
    [
        (lambda: Several.from_loss(0, alike(40), 8, 4, PCGrad()), True),
        (lambda: Several.from_loss(0, alike(40), 9, 4, PCGrad()), False),
        (lambda: Several.from_loss(0, alike(4), 2, 5, PCGrad()), False),  # reach one parameter
        (lambda: Several.from_loss(4, alike(4), 2, 8, PCGrad()), True),
        (lambda: Several.from_loss(5, alike(4), 2, 9, PCGrad()), False),
        # of 8 groups and 4 dtypes, then of more losses
        (lambda: Several.from_loss(0, every_view(3), 8, 2, PCGrad()), True),
        (lambda: Several.with_gaps(every_view(3), 8, 2, PCGrad()), False),
    ],
    ids=["8 groups", "9 groups", "5 gradients", "8 losses", "9 losses", "32 kinds", "more kinds"],
)
def test_what_one_launch_holds_besides(emulator, monkeypatch, make, fits):
    monkeypatch.setenv("MODGRAD_COOPERATIVE", "1")
    several = make()
    several.check(emulator.ops)
    assert is_at_once(emulator, partial(several.run, emulator.ops)) == fits


@pytest.mark.parametrize("more", [0, 1])
def test_large_gradients_go_in_parts_unless_told(emulator, monkeypatch, more):
    monkeypatch.delenv("MODGRAD_COOPERATIVE", raising=False)
    size = 2**23 + more
    out, *grads = torch.ones(3, 2**23 + 64, dtype=torch.float16)[:, :size]
    places = grads, [0, 0], [0, 1], [0]
    several = Several([out], places, (1, 2), PCGrad().rule, None, [])
    assert is_at_once(emulator, partial(several.run, emulator.ops)) == (more == 0)
    assert (out == 2).all()


def test_what_cannot_be_launched_at_once_goes_in_parts(emulator, monkeypatch):
    monkeypatch.setenv("MODGRAD_COOPERATIVE", "1")
    several = Several.with_gaps(many(60), 2, 3, PCGrad())
    with emulator.without_cooperation():
        several.check(emulator.ops)


def test_no_elements(ops, variant):
    several = Several.from_loss(0, [fenced(torch.randn(0), 0)] * 3, 2, 2, PCGrad())
    gram, *_ = several.check(ops)
    assert (gram == 0).all()


@pytest.mark.parametrize("bad", [float("inf"), float("nan")], ids=str)
@COMPARING
def test_gradients_that_are_not_finite(ops, variant, balancer, bad):
    several = Several.from_loss(0, alike(6), 2, 3, balancer)
    several.places[0][4][7] = bad  # loss 1 of the second parameter, of group 1 or 0
    gram, weights, new = several.run(ops)
    spoiled = several.places[3][1]
    assert gram.isfinite().all((1, 2)).tolist() == [g != spoiled for g in range(2)]
    exact, exact_new = rules.weights(several.rule, gram, several.losses, tuple(several.state))
    compare(weights, exact)
    assert weights.isfinite().all()
    for a, b in zip(new, exact_new, strict=True):
        compare(a, b)


def test_bad_arguments_change_nothing(ops, variant):
    several = Several.from_loss(0, alike(3), 2, 2, PCGrad())
    grads, tensor, loss, group = several.places
    out = several.out
    for given, rule, match in [
        ((out, grads, tensor, loss, [0, 1]), PCGrad().rule, "`group` has 2 entries"),
        ((out, grads, tensor, [0] * 6, group), PCGrad().rule, "of one tensor and one loss"),
        ((out[:2], grads, tensor, loss, group), PCGrad().rule, "entries, allowed: 2"),
        (([out[0].double(), *out[1:]], grads, tensor, loss, group), PCGrad().rule, r"`out\[0\]`"),
        ((out, grads, tensor, loss, group), GradNorm().rule, "`states` has 0 entries"),
    ]:
        before = [o.clone() for o in given[0]]
        with pytest.raises(RuntimeError, match=match):
            ops.balance_(*given, 2, 2, rule.name, rule.parameters, None, [])
        assert all(map(torch.equal, given[0], before))
