"""What follows where a native op raises: the checks name the culprit, unless the device failed."""

import re

import pytest
import torch
from conftest import usable

import modgrad
from modgrad.backends import native

OPS = {
    "group_sq_norms": lambda x: modgrad.group_sq_norms(x, [0, 1], 2),
    "group_gram": lambda x: modgrad.group_gram([x, x], [0, 1], 2),
    "modulate_": lambda x: modgrad.modulate_(x, [0, 1], torch.ones(2)),
    "combine_": lambda x: modgrad.combine_(
        [torch.empty_like(g) for g in x], [x, x], [0, 1], torch.ones(2, 2)
    ),
    "balance_": lambda x: modgrad.balance_(
        [x, x], [0, 1], 2, modgrad.PCGrad().rule, out=[torch.empty_like(g) for g in x]
    ),
    "modulated_sgd_": lambda x: modgrad.modulated_sgd_(
        [torch.ones_like(g) for g in x], x, [], [0, 1], torch.ones(2), lr=0.1
    ),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), 1),
        (torch.OutOfMemoryError("CUDA out of memory."), 1),
        (RuntimeError("`grads[1]` has gaps or overlaps in memory, allowed: dense"), 2),
    ],
    ids=["device", "memory", "refusal"],
)
def test_an_op_whose_device_failed_does_not_run_again(monkeypatch, op, error, calls):
    """Some of its launches may be done: a second run would scale or step twice."""
    usable("native", "cpu")
    count = 0

    def fail(*args, **options):
        nonlocal count
        count += 1
        raise error

    monkeypatch.setattr(native, op, fail)
    with pytest.raises(type(error), match=re.escape(str(error))):
        OPS[op]([torch.ones(3), torch.ones(2)])
    assert count == calls
