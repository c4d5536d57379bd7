"""Cases of the ops over the gradients of one loss."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import modgrad
from modgrad.bench import baselines, lightning
from modgrad.bench.case import COMPILED, Case, kernels, launches
from modgrad.bench.models import tensors


def config_of(shapes: str, dtype: torch.dtype, **more: Any) -> dict[str, Any]:
    """What a case of lists was measured on."""
    return {"shapes": shapes, "dtype": str(dtype).removeprefix("torch."), **more}


def bytes_of(values: list[Tensor]) -> int:
    """Of all elements."""
    return sum(t.numel() * t.element_size() for t in values)


def is_ours(provider: str) -> bool:
    """Whether it adds in float64."""
    return provider.startswith("modgrad")


def group_sq_norms(
    shapes: str, device: str, dtype: torch.dtype = torch.float32, compiled: bool = False
) -> Case:
    """Squared norms per modality."""
    values, group = tensors(shapes, device, dtype)
    index = torch.tensor(group, device=device)
    providers: dict[str, Callable[[], Any]] = {
        "foreach": partial(baselines.foreach_group_sq_norms, values, index, 2),
        "papers' loop": partial(baselines.loop_group_sq_norms, values, group, 2),
    }
    if compiled:
        foreach = torch.compile(baselines.foreach_group_sq_norms)
        providers[f"foreach{COMPILED}"] = partial(foreach, values, index, 2)
    missing = {"Lightning's grad_norm": reason} if (reason := lightning.why_not()) else {}
    if not missing:
        lists = baselines.by_group(values, group, 2)
        providers["Lightning's grad_norm"] = lightning.grad_sq_norms(lists)
    for name in kernels(device):
        run = partial(modgrad.group_sq_norms, values, group, 2, backend=name)
        providers[f"modgrad, {name}"] = run

    def check() -> None:
        expected = torch.zeros(2, dtype=torch.float64)
        for tensor, g in zip(values, group, strict=True):
            expected[g] += tensor.double().square().sum().cpu()
        for name, provider in providers.items():
            # the baselines add in float32 or half precision
            tolerance = 1e-10 if is_ours(name) else 1e-2
            torch.testing.assert_close(provider().double().cpu(), expected, rtol=tolerance, atol=0)

    config = config_of(shapes, dtype)
    size = bytes_of(values)
    return Case("group_sq_norms", providers, check, config, bytes=size, cold=True, missing=missing)


def modulate_(
    shapes: str, device: str, dtype: torch.dtype = torch.float32, compiled: bool = False
) -> Case:
    """Gradients scaled in place, every modality by a weight of its own."""
    values, group = tensors(shapes, device, dtype)
    # about 1: no run of a thousand leaves the range of floats
    weights = torch.tensor([0.999, 1.001], device=device)
    lists = baselines.by_group(values, group, 2)
    providers: dict[str, Callable[[], Any]] = {
        "foreach": partial(baselines.foreach_modulate_, lists, weights),
        "papers' loop": partial(baselines.loop_modulate_, values, group, weights),
    }
    if compiled:
        foreach = torch.compile(baselines.foreach_modulate_)
        providers[f"foreach{COMPILED}"] = partial(foreach, lists, weights)
    for name in kernels(device):
        providers[f"modgrad, {name}"] = partial(
            modgrad.modulate_, values, group, weights, backend=name
        )

    def check() -> None:
        for provider in providers.values():
            expected = [
                (t.float() * weights[g]).to(dtype) for t, g in zip(values, group, strict=True)
            ]
            provider()
            torch.testing.assert_close(values, expected)

    config = config_of(shapes, dtype)
    return Case("modulate_", providers, check, config, bytes=2 * bytes_of(values), cold=True)


def balance_(shapes: str, device: str, dtype: torch.dtype = torch.float32) -> Case:
    """Norms, weights from them, scaling: what a norm-based balancer and clipping have in common."""
    rule = modgrad.EqualNorms().rule
    values, group = tensors(shapes, device, dtype)
    index, lists = torch.tensor(group, device=device), baselines.by_group(values, group, 2)
    params = [torch.empty_like(t).requires_grad_() for t in values]
    for p, value in zip(params, values, strict=True):
        p.grad = value

    def weights(sq_norms: Tensor) -> Tensor:
        norms = sq_norms.sqrt()
        return (norms.mean() / norms).float()

    def foreach() -> None:
        sq_norms = baselines.foreach_group_sq_norms(values, index, 2)
        baselines.foreach_modulate_(lists, weights(sq_norms))

    def in_parts(backend: str) -> None:
        sq_norms = modgrad.group_sq_norms(values, group, 2, backend=backend)
        found, _ = modgrad.rule_weights(sq_norms[:, None, None], rule, backend=backend)
        modgrad.modulate_(values, group, found[:, 0], backend=backend)

    def at_once(backend: str) -> None:
        modgrad.balance_(values, group, 2, rule, backend=backend)

    def clip() -> None:
        # a norm of all, and a product with 1: the same traffic
        torch.nn.utils.clip_grad_norm_(params, 1e9, foreach=True)

    providers: dict[str, Callable[[], Any]] = {"foreach": foreach, "clip_grad_norm_": clip}
    for name in kernels(device):
        providers[f"modgrad, {name}"] = partial(at_once, name)
        providers[f"modgrad, {name}, three ops"] = partial(in_parts, name)
    providers |= launches(device, partial(at_once, "native"))

    def check() -> None:
        for name, provider in providers.items():
            torch._foreach_mul_(lists[0], 2.0)
            before = modgrad.group_sq_norms(values, group, 2, backend="reference")
            provider()
            after = modgrad.group_sq_norms(values, group, 2, backend="reference")
            expected = before if name == "clip_grad_norm_" else before.sqrt().mean().square()
            torch.testing.assert_close(after, expected.expand(2), rtol=1e-2, atol=0)
            torch._foreach_mul_(lists[0], 0.5)

    config = config_of(shapes, dtype)
    size = 3 * bytes_of(values)
    return Case("balance_", providers, check, config, bytes=size, cold=True)
