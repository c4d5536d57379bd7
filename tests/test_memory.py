"""What is remembered stays in the same tensors, as a captured CUDA graph needs it."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from modgrad.balancers.base import state_tensors
from modgrad.memory import Memory


class State(NamedTuple):
    now: Tensor
    before: Tensor
    both: Tensor


def memory():
    state = State(torch.tensor([1.0, 2.0]), torch.zeros(2), torch.zeros(2, 2))
    return Memory(("a", "b"), state, 0, torch.device("cpu"))


def places(m):
    tensors = m.step, m.epoch, m.seed, *state_tensors(m.state).values()
    return [t.data_ptr() for t in tensors]


@pytest.mark.parametrize("skipped", [None, torch.tensor([0.0])])
def test_a_state_moves_on_within_its_tensors(skipped):
    m = memory()
    first = places(m)
    for i in range(1, 4):
        old = m.state
        # its own tensors in other places, and parts of them
        new = State(old.now + 1, old.now, torch.stack((old.before, old.both[0])))
        m.advance(new._replace(before=old.now[:]), skipped)
        assert m.state.now.tolist() == [1.0 + i, 2.0 + i]
        assert m.state.before.tolist() == [0.0 + i, 1.0 + i]
        assert m.step.item() == i
    assert m.state.both.tolist() == [[2.0, 3.0], [1.0, 2.0]]
    assert places(m) == first


def test_places_that_begin_as_one_tensor_come_apart():
    one = torch.zeros(2)
    m = Memory(("a", "b"), State(one, one, one.expand(2, 2)), 0, torch.device("cpu"))
    m.advance(State(one + 1, one + 2, torch.ones(2, 2)), None)
    assert (m.state.now.tolist(), m.state.before.tolist()) == ([1.0, 1.0], [2.0, 2.0])


@pytest.mark.parametrize("skipped", [None, torch.tensor([0.0])])
def test_a_state_may_remember_the_step(skipped):
    m = Memory(("a",), State(*(torch.zeros((), dtype=torch.int64),) * 3), 0, torch.device("cpu"))
    for i in range(3):
        m.advance(m.state._replace(now=m.step), skipped)
        assert (m.state.now.item(), m.step.item()) == (i, i + 1)


@pytest.mark.parametrize("change", [torch.Tensor.double, lambda x: x[:1], lambda x: x[None]])
def test_a_new_state_of_another_form_is_refused(change):
    m = memory()
    m.check(m.state)
    m.check(State(*(t + 1 for t in m.state)))
    with pytest.raises(ValueError, match=r"`before` is .*allowed: what it was"):
        m.check(m.state._replace(before=change(m.state.before)))


def test_a_skipped_step_leaves_it():
    m = memory()
    m.advance(State(*(t + 5 for t in m.state)), torch.tensor([1.0]))
    assert m.state.now.tolist() == [1.0, 2.0]
    assert m.step.item() == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"epoch": torch.zeros(2)}, r"`state_dict\['epoch'\]` is tensor\(\[0., 0.\]\)"),
        ({"seed": "x"}, r"`state_dict\['seed'\]` is x, allowed: a tensor \[\]"),
        ({"modalities": None}, "is of modalities None, allowed: "),
        ({"balancer": None}, "holds balancer state None, allowed: {"),
        ({"balancer": {"now": [1.0, 2.0]}}, r"holds balancer state {'now': \[1.0, 2.0\]}"),
    ],
)
def test_a_state_dict_that_is_refused_changes_nothing(change, match):
    m = memory()
    before = m.state_dict()
    with pytest.raises(ValueError, match=match):
        m.load_state_dict({**before, "step": torch.tensor(5), **change})
    assert repr(m.state_dict()) == repr(before)


def test_loading_and_setting_fill_the_same_tensors():
    m, other = memory(), memory()
    other.advance(State(*(t + 5 for t in other.state)), None)
    other.set_epoch(3)
    first = places(m)
    m.load_state_dict(other.state_dict())
    assert m.state_dict().keys() == other.state_dict().keys()
    assert m.state.now.tolist() == [6.0, 7.0]
    assert (m.step.item(), m.epoch.item()) == (1, 3)
    m.state = State(*(t + 1 for t in m.state))
    assert m.state.now.tolist() == [7.0, 8.0]
    assert other.state.now.tolist() == [6.0, 7.0]
    m.set_epoch(4)
    assert m.epoch.item() == 4
    assert places(m) == first
