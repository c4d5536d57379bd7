"""The CUDA kernels that decide by a rule, run on the CPU by tests/native/emulator."""

import mmap
from functools import partial
from itertools import product

import inputs
import pytest
import torch
from at_once import VARIANTS, is_at_once
from fences import copies, fenced, fences_stand
from test_cuda_emulated import EPS64, at_once_and_in_parts, every_view, logits_of, many
from test_rules import RULED, compare, inputs_of

from modgrad import rules
from modgrad.backends import reference
from modgrad.balancers import EqualNorms, PCGrad

RULE = EqualNorms(0.5, cap=1.5).rule
# One launch takes 64 tensors with elements, 512 or 3920; those of one part take 64 or 880.
LISTS = [(every_view, n) for n in (0, 1, 7, 257, 16385, 40_001)]
LISTS += [(many, count) for count in (65, 300, 900)]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=LISTS, ids=lambda parts: f"{parts[0].__name__}({parts[1]})")
def tensors(request):
    make, number = request.param
    return make(number)


@pytest.mark.parametrize("M", [2, 5, 300])
@pytest.mark.parametrize("name", RULED)
def test_weights_equal_the_definition(ops, name, M):
    rule = RULED[name].rule
    # with as many losses as modalities, 300 cubed numbers
    values, losses, state = inputs_of(rule, 7 if M == 300 and rule.name == "mmpareto" else M, "cpu")
    weights, new = ops.rule_weights(values, rule.name, rule.parameters, losses, state)
    exact, exact_new = rules.weights(rule, values, losses, state)
    compare(weights, exact)
    assert new.shape == (len(state), weights.shape[1])
    for a, b in zip(new, exact_new, strict=True):
        compare(a, b)


def balance(ops, grads, group, M, rule=RULE):
    """In place, for one loss."""
    return ops.balance_(grads, [], [], [], group, M, 1, rule.name, rule.parameters, None, [])


def check_one_loss(tensors, group, M, changed, found):
    gram, weights, new = found
    exact = reference.group_sq_norms(tensors, group, M)
    # as for sums of squares
    rtol = (200 + len(tensors)) * EPS64
    torch.testing.assert_close(gram, exact[:, None, None], rtol=rtol, atol=0)
    compare(weights, rules.weights(RULE, gram)[0])
    assert new.shape == (0, 1)
    expected = reference.scale_backward(tensors, weights[group, 0])
    assert all(map(torch.equal, changed, expected))
    assert fences_stand(changed)


@pytest.mark.parametrize("M", [1, 3, 8, 9])
def test_one_loss_in_place(ops, variant, tensors, M):
    group, changed = inputs.groups(len(tensors), M), copies(tensors)
    check_one_loss(tensors, group, M, changed, balance(ops, changed, group, M))


def test_more_chunks_than_one_block_adds(ops, monkeypatch):
    monkeypatch.setenv("MODGRAD_COOPERATIVE", "0")
    tensors = many(5200)
    group, changed = inputs.groups(len(tensors), 3), copies(tensors)
    assert sum(t.numel() > 0 for t in tensors) > 4096
    check_one_loss(tensors, group, 3, changed, balance(ops, changed, group, 3))


def results(ops, tensors, group):
    changed = copies(tensors)
    return [*balance(ops, changed, group, 3), *changed]


def test_same_bits_at_once_and_in_parts_and_in_every_schedule(emulator, monkeypatch):
    tensors = [t for n in (5, 257, 40_001) for t in every_view(n)[::5]] + many(60)
    group, found = inputs.groups(len(tensors), 3), []
    for variant in VARIANTS:
        monkeypatch.setenv("MODGRAD_COOPERATIVE", variant)
        for seed, resident in product(range(3), [1, 2, 3] if variant == "1" else [3]):
            emulator.seed(seed)
            with emulator.resident(resident):
                found.append(results(emulator.ops, tensors, group))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
    assert torch.equal(found[0][0][:, 0, 0], emulator.ops.group_sq_norms(tensors, group, 3))


@pytest.mark.parametrize("count", [1, 16, 17, 63, 64, 65, 512, 513, 3920, 3921])
def test_as_many_tensors_as_one_launch_holds(emulator, monkeypatch, count):
    monkeypatch.setenv("MODGRAD_COOPERATIVE", "1")
    tensors = [fenced(torch.randn(1 + i % 5).to(inputs.DTYPES[i % 4]), i % 9) for i in range(count)]
    tensors += [fenced(torch.randn(0), 1)] * 5
    group, changed = inputs.groups(len(tensors), 5), copies(tensors)
    check_one_loss(tensors, group, 5, changed, balance(emulator.ops, changed, group, 5))
    run = partial(balance, emulator.ops, changed, group, 5)
    assert is_at_once(emulator, run) == (count <= 3920)


@pytest.mark.parametrize("more", [0, 1])
def test_large_gradients_go_in_parts_unless_told(emulator, monkeypatch, more):
    monkeypatch.delenv("MODGRAD_COOPERATIVE", raising=False)
    grads = torch.ones(2**24 + more, dtype=torch.float16).split(2**24 - 100)
    run = partial(balance, emulator.ops, grads, [0, 1], 2)
    assert is_at_once(emulator, run) == (more == 0)


@pytest.mark.parametrize("more", [0, 1])
def test_large_logits_go_in_parts_unless_told(emulator, monkeypatch, more):
    monkeypatch.delenv("MODGRAD_COOPERATIVE", raising=False)
    logits, targets = [torch.zeros(1, 2**22 + more, dtype=torch.float16)], torch.zeros(1).long()
    run = partial(emulator.ops.modality_scores, logits, targets)
    assert is_at_once(emulator, run) == (more == 0)


@pytest.mark.parametrize("more", [0, 1])
def test_gradients_too_far_apart_for_one_launch_go_in_parts(emulator, monkeypatch, more):
    monkeypatch.setenv("MODGRAD_COOPERATIVE", "1")
    # 8 GiB, of which few pages are touched
    memory = torch.frombuffer(mmap.mmap(-1, 2**33 + 4096), dtype=torch.float16)
    places = [0, 1, 2**32 - 1 + more]  # in units of 2 bytes, which 32 bits count or not
    grads = [memory[i : i + n] for i, n in zip(places, (1, 3, 100), strict=True)]
    for grad in grads:
        grad.normal_()
    before = [grad.clone() for grad in grads]
    run = partial(balance, emulator.ops, grads, [0, 1, 1], 2)
    _, weights, _ = run()
    expected = reference.scale_backward(before, weights[[0, 1, 1], 0])
    assert all(map(torch.equal, grads, expected))
    assert is_at_once(emulator, run) == (more == 0)


@pytest.mark.parametrize("count", [60, 1000])
def test_what_cannot_be_launched_at_once_goes_in_parts(emulator, monkeypatch, count):
    monkeypatch.setenv("MODGRAD_COOPERATIVE", "1")
    tensors = many(count)
    group, changed = inputs.groups(len(tensors), 3), copies(tensors)
    with emulator.without_cooperation():
        check_one_loss(tensors, group, 3, changed, balance(emulator.ops, changed, group, 3))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")], ids=str)
def test_gradients_that_are_not_finite_are_left_alone(ops, variant, bad):
    grads = list(torch.randn(20_050).split([50, 20_000, 0]))
    grads[1][17_777] = bad
    before = [g.clone() for g in grads]
    gram, weights, _ = balance(ops, grads, [0, 1, 2], 3)
    assert gram.flatten().isfinite().tolist() == [True, False, True]
    assert weights.flatten().tolist() == [1.0] * 3
    torch.testing.assert_close(grads, before, rtol=0, atol=0, equal_nan=True)


def test_bad_arguments_change_nothing(ops, variant):
    grads = [torch.ones(3), torch.ones(2)]
    for group, M, rule, match in [
        ([0], 1, RULE, "`group` has 1 entries"),
        ([0, 2], 2, RULE, r"`group\[1\]` is 2"),
        ([0, 1], 2, PCGrad().rule, "has 1 losses"),
    ]:
        with pytest.raises(RuntimeError, match=match):
            balance(ops, grads, group, M, rule)
    assert all((g == 1).all() for g in grads)


@pytest.mark.parametrize("num_joint", [0, 1, 3])
@pytest.mark.parametrize(("B", "M"), [(1, 5), (300, 5), (7, 300)])
def test_weights_of_scores(ops, B, M, num_joint):
    logits, classes = logits_of(B, [3 + m % 4 for m in range(M)]), torch.arange(B) % 3
    for given in [(classes, None, -100, 0.0), (classes, None, 0, 0.1)]:
        for rule in (RULED["ogm"].rule, RULED["ogm continuous"].rule):
            arguments = logits, *given, rule.name, rule.parameters, num_joint
            found = at_once_and_in_parts(ops.modality_cross_entropy, *arguments)
            plain = ops.modality_cross_entropy(*arguments[:5])
            torch.testing.assert_close(found[:4], plain[:4], rtol=0, atol=0, equal_nan=True)
            weights = found[4]
            assert weights.shape == (M,)
            assert (weights[:num_joint] == 1).all()
            compare(weights[num_joint:], rules.weights(rule, found[1][num_joint:])[0][:, 0])
    assert fences_stand(logits)


def test_no_weights_without_a_rule(ops):
    found = ops.modality_cross_entropy(logits_of(3, [5, 6]), torch.arange(3), None, -100, 0.0)
    assert found[4].shape == (0,)


@pytest.mark.parametrize(
    ("rule", "num_joint", "match"),
    [
        ("ogm", 1, "`num_joint` is 1, allowed with 2 logits and a rule: 0 to 0"),
        ("pcgrad", 0, "reads a gram"),
    ],
)
def test_rules_that_scores_have_not(ops, rule, num_joint, match):
    logits, targets = logits_of(3, [5, 6]), torch.arange(3)
    with pytest.raises(RuntimeError, match=match):
        ops.modality_cross_entropy(logits, targets, None, -100, 0.0, rule, [0.5, 0.0], num_joint)
