"""Every op once, for what holds of all of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import modgrad

SIZES = [(3, 5), (1023,), (16385,), (2, 3, 4, 5), (1,), (40_001,)]
GROUP = [0, 1, 2, 0, 2, 1]
P = len(SIZES)
EQUAL = modgrad.EqualNorms(0.5).rule


class Call(NamedTuple):
    """What an op reads and changes, and a function of it that returns all that was written."""

    inputs: list[Tensor]
    run: Callable[[Sequence[Tensor]], Sequence[Tensor]]


def _grads(device: str) -> list[Tensor]:
    return [torch.randn(size, device=device) for size in SIZES]


def _split(tensors: Sequence[Tensor], *sizes: int) -> list[Sequence[Tensor]]:
    """Consecutive parts, and the rest."""
    parts = []
    for size in sizes:
        parts.append(tensors[:size])
        tensors = tensors[size:]
    return [*parts, tensors]


def calls(device: str, backend: str) -> dict[str, Call]:
    """By name; the inputs may be multiplied by positive numbers."""
    out = {}
    weights = torch.tensor([0.5, 1.0, 2.0], device=device)
    seed = torch.tensor(3, device=device)
    targets = torch.arange(9, device=device) % 7
    logits = [torch.randn(9, width, device=device) for width in (7, 7, 7)]

    def call(name: str, *inputs: Tensor):
        def keep(run):
            out[name] = Call(list(inputs), run)

        return keep

    @call("group_sq_norms", *_grads(device))
    def _(x):
        return [modgrad.group_sq_norms(x, GROUP, 3, backend=backend)]

    @call("group_gram", *_grads(device), *_grads(device))
    def _(x):
        return [modgrad.group_gram(_split(x, P), GROUP, 3, backend=backend)]

    @call("combine_", *_grads(device), *_grads(device), torch.rand(3, 2, device=device))
    def _(x):
        *grads, matrix = x
        combined = [torch.empty_like(g) for g in grads[:P]]
        modgrad.combine_(combined, _split(grads, P), GROUP, matrix, backend=backend)
        return combined

    @call("modulate_", *_grads(device), weights)
    def _(x):
        modgrad.modulate_(x[:P], GROUP, x[P], backend=backend)
        return x[:P]

    @call("modulate_ with noise", *_grads(device), weights, weights.flip(0), seed)
    def _(x):
        modgrad.modulate_(x[:P], GROUP, x[P], x[P + 1], x[P + 2], backend=backend)
        return x[:P]

    @call("scale_backward", *_grads(device)[:3], weights)
    def _(x):
        leaves = [f.detach().requires_grad_() for f in x[:3]]
        scaled = modgrad.scale_backward(leaves, x[3], backend=backend)
        return torch.autograd.grad([s.square().sum() for s in scaled], leaves)

    @call("modality_scores", *logits, targets)
    def _(x):
        return [modgrad.modality_scores(x[:3], x[3], backend=backend)]

    @call("modality_cross_entropy", *logits, targets, weights)
    def _(x):
        leaves = [z.detach().requires_grad_() for z in x[:3]]
        found = modgrad.modality_cross_entropy(leaves, x[3], x[4], backend=backend)
        return [*found, *torch.autograd.grad(found.losses.sum(), leaves)]

    @call("balanced_cross_entropy", *logits, targets)
    def _(x):
        leaves = [z.detach().requires_grad_() for z in x[:3]]
        rule = modgrad.OGM(0.5).rule
        found = modgrad.balanced_cross_entropy(leaves, x[3], rule, num_joint=1, backend=backend)
        return [*found, *torch.autograd.grad(found.losses.sum(), leaves)]

    vectors = torch.randn(3, 2, 5, device=device, dtype=torch.float64)

    @call("rule_weights", vectors @ vectors.mT)
    def _(x):
        return [modgrad.rule_weights(x[0], modgrad.PCGrad().rule, backend=backend)[0]]

    @call("balance_", *_grads(device))
    def _(x):
        return [*modgrad.balance_(x, GROUP, 3, EQUAL, backend=backend)[:2], *x]

    @call("balance_ of losses", *_grads(device), *_grads(device))
    def _(x):
        combined = [torch.empty_like(g) for g in x[:P]]
        rule = modgrad.PCGrad().rule
        found = modgrad.balance_(_split(x, P), GROUP, 3, rule, out=combined, backend=backend)
        return [*found[:2], *combined]

    for suffix, options in (("", {}), (" by norms", {"rule": EQUAL})):
        buffers = _grads(device)

        @call("modulated_sgd_" + suffix, *_grads(device), *_grads(device), *buffers, weights)
        def _(x, options=options):
            params, grads, buffers, (w,) = _split(x, P, P, P)
            own = w.clone()
            modgrad.modulated_sgd_(
                *(params, grads, buffers, GROUP, own),
                lr=0.1,
                momentum=0.9,
                backend=backend,
                **options,
            )
            return [*params, *buffers, own]

        moments = [*_grads(device), *(g.abs() for g in _grads(device))]
        steps = [torch.tensor(4.0, device=device) for _ in SIZES]

        @call(
            "modulated_adamw_" + suffix,
            *(*_grads(device), *_grads(device), *moments, *steps, weights),
        )
        def _(x, options=options):
            params, grads, first, second, steps, (w,) = _split(x, P, P, P, P, P)
            own = w.clone()
            modgrad.modulated_adamw_(
                *(params, grads, first, second, steps, GROUP, own),
                lr=0.1,
                backend=backend,
                **options,
            )
            return [*params, *first, *second, *steps, own]

    return out


NAMES = tuple(calls("cpu", "reference"))


def clones(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x.clone() for x in tensors]


def assert_same_bits(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
