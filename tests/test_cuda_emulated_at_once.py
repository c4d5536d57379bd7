"""Updates with a rule in one launch, whose blocks wait for one another, and in parts."""

import pytest
import torch
from test_cuda_emulated_updates import (
    NOISE,
    OPTIMIZERS,
    TYPES,
    Update,
    by_rule,
    many,
    scalars,
)

from modgrad.backends import reference

pytestmark = pytest.mark.usefixtures("one_thread")

AT_ONCE, IN_PARTS = "1", "0"
EVERY_OPTION = {
    **scalars(lr_tensor=0.05, grad_scale=3.0, found_inf=0.0),
    **{"maximize": True, "scale_update": True},
}
FLOAT32 = (torch.float32, torch.float32)
BFLOAT16 = (torch.bfloat16, torch.float32)


def awkward(types):
    """Around packs, blocks and chunks; aligned, apart from a boundary, and from the gradients."""
    places = [(0, 0), (1, 1), (0, 3)]
    return [(n, *types, *place) for n in (0, 1, 7, 257, 16385, 40_001) for place in places]


class Launched:
    """An update with a rule, what it changed, and how many launches it took."""

    def __init__(self, emulator, before, choice, M=4, resident=3, **options):
        self.weights = torch.full((M,), torch.nan)
        begin = emulator.launches()
        with pytest.MonkeyPatch.context() as patch, emulator.resident(resident):
            patch.delenv("MODGRAD_COOPERATIVE", raising=False)
            if choice is not None:
                patch.setenv("MODGRAD_COOPERATIVE", choice)
            self.update = by_rule(before, emulator.ops, self.weights, **options)
        self.launches = emulator.launches() - begin

    def check_same_bits(self, other):
        assert torch.equal(self.weights, other.weights)
        assert all(map(torch.equal, self.update.tensors(), other.update.tensors()))


def check(emulator, before, M=4, **options):
    """At once, by one block and by several, as in parts; and as the reference. The launches."""
    norms = [torch.full((2, M), torch.nan, dtype=torch.float64) for _ in range(3)]
    at_once = Launched(emulator, before, AT_ONCE, M, sq_norms=norms[0], **options)
    alone = Launched(emulator, before, AT_ONCE, M, resident=1, sq_norms=norms[1], **options)
    in_parts = Launched(emulator, before, IN_PARTS, M, sq_norms=norms[2], **options)
    for other, of_other in ((alone, norms[1]), (in_parts, norms[2])):
        at_once.check_same_bits(other)
        assert torch.equal(norms[0], of_other)
    exact = torch.full((M,), torch.nan)
    by_rule(before, reference, exact, **options)
    # float64 sums, rounded once
    torch.testing.assert_close(at_once.weights, exact, rtol=2**-23, atol=0)
    expected = before.copy().run(reference, at_once.weights.clone(), **options)
    at_once.update.check_against(expected, before)
    return at_once.launches, in_parts.launches


def in_parts_of(optimizer):
    """Squares; sums and rule; the tensors of Adam; the update; norms."""
    return 5 if optimizer in ("adam", "l2", "adamw", "amsgrad") else 4


@pytest.mark.parametrize("options", [{}, EVERY_OPTION], ids=["plain", "every option"])
@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_same_bits_as_in_parts(emulator, optimizer, types, options):
    before = Update(optimizer, awkward(types))
    at_once, in_parts = check(emulator, before, **options)
    assert in_parts == in_parts_of(optimizer)
    assert at_once == (in_parts if types[0] == torch.float64 else 2)


@pytest.mark.parametrize("count", [2, 64, 65, 430])
@pytest.mark.parametrize("types", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("optimizer", ["nesterov", "amsgrad"])
def test_lists_of_one_launch(emulator, optimizer, types, count):
    before = Update(optimizer, many(count, [types]))
    assert check(emulator, before) == (2, in_parts_of(optimizer))


@pytest.mark.parametrize("optimizer", ["nesterov", "amsgrad"])
@pytest.mark.parametrize(
    "group",
    [[-1] * 4, [-1, 3, 3, -1], [5, 5, 5, 5], [7, 0, -1, 2], [0, 1, 0, 1]],
    ids=str,
)
def test_shared_parameters_and_missing_modalities(emulator, optimizer, group):
    before = Update(optimizer, [(n, *FLOAT32, 0, 0) for n in (40_001, 300, 0, 16385)])
    before.group = group
    assert check(emulator, before, M=8)[0] == 2
    found = Launched(emulator, before, AT_ONCE, M=8)
    # without gradients there is nothing to balance
    present = {g for g, t in zip(group, before.grads, strict=True) if g >= 0 and t.numel()}
    assert {m for m in range(8) if found.weights[m] != 1} <= present
    assert len(present) < 2 or (found.weights != 1).any()


@pytest.mark.parametrize("optimizer", ["plain", "adam"])
def test_what_goes_at_once(emulator, optimizer):
    """Three or four launches become one where list, groups and types allow it."""
    parts = in_parts_of(optimizer) - 1
    short = Update(optimizer, many(20, [FLOAT32]))

    def launches(before, choice=None, **options):
        return Launched(emulator, before, choice, **options).launches

    assert launches(short) == launches(short, AT_ONCE) == 1
    assert launches(short, IN_PARTS) == parts
    assert launches(short, AT_ONCE, M=8) == 1
    assert launches(short, AT_ONCE, M=9) == parts + 1  # sums, rule
    assert launches(short, AT_ONCE, noise=NOISE, seed=torch.tensor(3)) == parts + 2
    assert launches(Update(optimizer, many(431, [FLOAT32])), AT_ONCE) > parts
    assert launches(Update(optimizer, many(20, [FLOAT32, BFLOAT16])), AT_ONCE) == parts + 1
    with emulator.without_cooperation():
        assert launches(short, AT_ONCE) == parts


def test_large_updates_go_in_parts(emulator):
    """2^24 elements are the limit, unless one launch is asked for."""
    half = torch.bfloat16, torch.bfloat16, 0, 0
    for more, launches in ((0, 1), (1, 3)):
        before = Update("plain", [(more, *half), (2**24, *half)])
        assert Launched(emulator, before, None).launches == launches


@pytest.mark.parametrize("choice", [AT_ONCE, IN_PARTS], ids=["at once", "in parts"])
@pytest.mark.parametrize("value", [1.0, float("nan")], ids=str)
@pytest.mark.parametrize("optimizer", ["momentum", "amsgrad"])
def test_a_step_that_is_skipped_changes_nothing(emulator, optimizer, value, choice):
    before = Update(optimizer, awkward(FLOAT32))
    sq_norms = torch.arange(8.0).double().view(2, 4)
    options = {"sq_norms": sq_norms, **scalars(found_inf=value)}
    found = Launched(emulator, before, choice, **options)
    assert all(map(torch.equal, found.update.tensors(), before.tensors()))
    assert found.weights.isnan().all()
    assert sq_norms.flatten().tolist() == list(range(8))


@pytest.mark.parametrize("optimizer", ["plain", "amsgrad"])
def test_same_bits_in_every_schedule_and_grid(emulator, optimizer):
    before = Update(optimizer, awkward(FLOAT32))
    in_parts = Launched(emulator, before, IN_PARTS)
    for resident in (1, 2, 3, 7):
        for seed in range(3):
            emulator.seed(seed)
            found = Launched(emulator, before, AT_ONCE, resident=resident)
            assert found.launches == 1
            found.check_same_bits(in_parts)


def test_gradients_that_are_not_finite_are_left_alone(emulator):
    before = Update("adam", many(20, [FLOAT32]))
    before.grads[4][7] = float("inf")
    assert (Launched(emulator, before, AT_ONCE).weights == 1).all()
