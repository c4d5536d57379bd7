"""Cases of the optimizer updates with weights folded in."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

import modgrad
from modgrad.bench.baselines import by_group, foreach_modulate_
from modgrad.bench.case import Case, kernels, launches
from modgrad.bench.models import tensors

LR, MOMENTUM, BETA1, BETA2, EPS = 1e-6, 0.9, 0.9, 0.999, 1e-8  # small: a run goes nowhere


def modulated_update(
    method: Literal["sgd", "adam", "adamw"],
    shapes: str,
    device: str,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """A step of torch's optimizer with a weight a modality; the first provider has no weights.

    Ours is given retained lists, as by ``ModulatedOptimizer``, and lists once more.
    """
    params, group = tensors(shapes, device, dtype)
    grads = [torch.randn_like(p) for p in params]
    # about 1: `grad_scale` writes the scaled gradient back, a thousand times
    weights = torch.tensor([0.999, 1.001], device=device)
    sq_norms = torch.empty(2, 2, dtype=torch.float64, device=device)
    first, second = ([torch.zeros_like(p) for p in params] for _ in range(2))
    steps = [torch.zeros((), device=device) for _ in params]
    states = (first,) if method == "sgd" else (first, second, steps)
    decay = 1e-2 if method == "adamw" else 0.0

    def stock(
        lists: Sequence[list[Tensor]], gradients: list[Tensor], scale: Tensor | None = None
    ) -> None:
        if method == "sgd":
            p, momenta = lists
            torch._fused_sgd_(
                *(p, gradients, momenta),
                weight_decay=0.0,
                momentum=MOMENTUM,
                lr=LR,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
                grad_scale=scale,
            )
            return
        p, averages, squares, counts = lists
        torch._foreach_add_(counts, 1)
        update = torch._fused_adam_ if method == "adam" else torch._fused_adamw_
        update(
            *(p, gradients, averages, squares, [], counts),
            amsgrad=False,
            maximize=False,
            beta1=BETA1,
            beta2=BETA2,
            lr=LR,
            eps=EPS,
            weight_decay=decay,
            grad_scale=scale,
        )

    listed: tuple[list[Tensor], ...] = (params, *states)
    of_group = by_group(grads, group, 2)
    listed_of_group = list(zip(*(by_group(x, group, 2) for x in listed), strict=True))

    def foreach_then_stock() -> None:
        foreach_modulate_(of_group, weights)
        stock(listed, grads)

    def grad_scale() -> None:
        for g, scale in enumerate(weights.reciprocal().unbind()):
            stock(listed_of_group[g], of_group[g], scale)

    retained = tuple(map(modgrad.RetainedList, listed))

    def ours(
        backend: str,
        w: Tensor = weights,
        lists: Sequence[Sequence[Tensor]] = retained,
        **more: Any,
    ) -> None:
        options = {"lr": LR, "weight_decay": decay, "backend": backend, **more}
        arguments: Any = (lists[0], grads, *lists[1:], group, w)
        if method == "sgd":
            modgrad.modulated_sgd_(*arguments, momentum=MOMENTUM, **options)
            return
        update = modgrad.modulated_adam_ if method == "adam" else modgrad.modulated_adamw_
        update(*arguments, **options)

    found = torch.ones_like(weights)

    def by_norms(backend: str) -> None:
        """The weights are found from this step's norms, in the same op."""
        ours(backend, found, rule=modgrad.EqualNorms().rule)

    providers: dict[str, Callable[[], Any]] = {
        "stock, no weights": partial(stock, listed, grads),
        "foreach, stock": foreach_then_stock,
        "stock by grad_scale": grad_scale,
    }
    for name in kernels(device):
        providers[f"modgrad, {name}"] = partial(ours, name)
        if name != "reference":
            providers[f"modgrad, {name}, norms"] = partial(ours, name, sq_norms=sq_norms)
            providers[f"modgrad, {name}, by norms"] = partial(by_norms, name)
        if name == "native":
            providers["modgrad, native, lists"] = partial(ours, name, lists=listed)
    providers |= launches(device, partial(by_norms, "native"), "modgrad, native, by norms")

    def check() -> None:
        """The first moments after one step."""
        share = 1.0 if method == "sgd" else 1 - BETA1
        for name, provider in providers.items():
            for values in states:
                torch._foreach_zero_(values)
            before = [x.to(torch.float32, copy=True) for x in grads]  # grad_scale writes to them
            provider()
            used = found if "by norms" in name else weights
            if name == "stock, no weights":
                used = torch.ones_like(weights)
            expected = [(share * x * used[g]).to(dtype) for x, g in zip(before, group, strict=True)]
            torch.testing.assert_close(first, expected)

    # parameters, gradients and states are read; all but the gradients are written
    passes = 5 if method == "sgd" else 7
    size = passes * sum(t.numel() * t.element_size() for t in params)
    config = {"shapes": shapes, "dtype": str(dtype).removeprefix("torch.")}
    return Case(f"modulated_{method}_", providers, check, config, bytes=size, cold=True)
