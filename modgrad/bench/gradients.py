"""Cases of the ops over lists of gradients."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import modgrad
from modgrad.balancers import AlignedMTL, Statistics
from modgrad.bench import baselines, lightning, torchjd
from modgrad.bench.case import COMPILED, Case, both_launches, kernels
from modgrad.bench.models import tensors

K = 3  # losses: a joint one and two unimodal ones


def _config(shapes: str, dtype: torch.dtype, **more: Any) -> dict[str, Any]:
    return {"shapes": shapes, "dtype": str(dtype).removeprefix("torch."), **more}


def _bytes(values: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in values)


def _is_ours(provider: str) -> bool:
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
            tolerance = 1e-10 if _is_ours(name) else 1e-2
            torch.testing.assert_close(provider().double().cpu(), expected, rtol=tolerance, atol=0)

    config = _config(shapes, dtype)
    size = _bytes(values)
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

    config = _config(shapes, dtype)
    return Case("modulate_", providers, check, config, bytes=2 * _bytes(values), cold=True)


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
    if device == "cuda" and "native" in kernels(device):
        for launches, run in both_launches(partial(at_once, "native")).items():
            providers[f"modgrad, native, {launches}"] = run

    def check() -> None:
        for name, provider in providers.items():
            torch._foreach_mul_(lists[0], 2.0)
            before = modgrad.group_sq_norms(values, group, 2, backend="reference")
            provider()
            after = modgrad.group_sq_norms(values, group, 2, backend="reference")
            expected = before if name == "clip_grad_norm_" else before.sqrt().mean().square()
            torch.testing.assert_close(after, expected.expand(2), rtol=1e-2, atol=0)
            torch._foreach_mul_(lists[0], 0.5)

    config = _config(shapes, dtype)
    size = 3 * _bytes(values)
    return Case("balance_", providers, check, config, bytes=size, cold=True)


def _several(
    shapes: str, device: str, dtype: torch.dtype, losses: int
) -> tuple[list[list[Tensor]], list[int]]:
    lists = [tensors(shapes, device, dtype) for _ in range(losses)]
    return [values for values, _ in lists], lists[0][1]


def group_gram(
    shapes: str, device: str, dtype: torch.dtype = torch.float32, losses: int = K
) -> Case:
    """Inner products of the gradients of K losses, per modality."""
    per_loss, group = _several(shapes, device, dtype, losses)
    split = [baselines.by_group(grads, group, 2) for grads in per_loss]
    of_group = [[each[g] for each in split] for g in range(2)]
    matrices = [each[0][0].new_empty(losses, sum(t.numel() for t in each[0])) for each in of_group]
    providers: dict[str, Callable[[], Any]] = {
        "concatenated": partial(baselines.stacked_group_gram, of_group, matrices),
        "papers' loop": partial(baselines.loop_group_gram, per_loss, group, 2),
    }
    for name in kernels(device):
        run = partial(modgrad.group_gram, per_loss, group, 2, backend=name)
        providers[f"modgrad, {name}"] = run

    def check() -> None:
        exact = [[[x.double() for x in grads] for grads in each] for each in of_group]
        expected = baselines.stacked_group_gram(exact, [m.double() for m in matrices])
        # off the diagonal sums of n products are about sqrt(n), with roundings of its size
        scale = float(expected.abs().max())
        for name, provider in providers.items():
            tolerance = 1e-10 if _is_ours(name) else 1e-2
            found = provider().to(expected)
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)

    size = sum(map(_bytes, per_loss))
    config = _config(shapes, dtype, losses=losses)
    return Case("group_gram", providers, check, config, bytes=size, cold=True)


def combine_(shapes: str, device: str, dtype: torch.dtype = torch.float32) -> Case:
    """The weighted sum of the gradients of K losses."""
    per_loss, group = _several(shapes, device, dtype, K)
    split = [baselines.by_group(grads, group, 2) for grads in per_loss]
    of_group = [[each[g] for each in split] for g in range(2)]
    out = [torch.empty_like(t) for t in per_loss[0]]
    weights = torch.rand(2, K, device=device)
    targets = baselines.by_group(out, group, 2)
    spare = [[torch.empty_like(t) for t in each] for each in targets]
    providers: dict[str, Callable[[], Any]] = {
        "foreach": partial(baselines.foreach_combine_, targets, of_group, weights, spare)
    }
    for name in kernels(device):
        run = partial(modgrad.combine_, out, per_loss, group, weights, backend=name)
        providers[f"modgrad, {name}"] = run

    def check() -> None:
        exact = [[[x.float() for x in grads] for grads in each] for each in of_group]
        wide = [t.float() for t in out]
        wide_spare = [[t.float() for t in each] for each in spare]
        baselines.foreach_combine_(baselines.by_group(wide, group, 2), exact, weights, wide_spare)
        tolerance = K * torch.finfo(dtype).eps  # a rounding for each loss, of terms below 8
        for provider in providers.values():
            torch._foreach_zero_(out)
            provider()
            torch.testing.assert_close(
                [t.float() for t in out], wide, rtol=tolerance, atol=8 * tolerance
            )

    size = (K + 1) * _bytes(out)
    config = _config(shapes, dtype, losses=K)
    return Case("combine_", providers, check, config, bytes=size, cold=True)


def aggregation(shapes: str, device: str) -> Case:
    """From the gradients of K losses to one: Aligned-MTL over all parameters as one group."""
    per_loss, _ = _several(shapes, device, torch.float32, K)
    group = [0] * len(per_loss[0])
    out = [torch.empty_like(t) for t in per_loss[0]]
    balancer, zero = AlignedMTL(), torch.zeros((), dtype=torch.int64, device=device)
    state = balancer.init(("all",), K, torch.device(device))

    def weights(gram: Tensor) -> Tensor:
        modulation, _ = balancer.update(Statistics(zero, zero, gram=gram), state)
        return modulation.weights.broadcast_to(1, K).float()

    rows = per_loss[0][0].new_empty(K, sum(t.numel() for t in out))
    total = torch.empty_like(rows[:1])

    def stacked() -> None:
        matrix = baselines.stacked(per_loss, rows)
        torch.mm(weights((matrix @ matrix.T).double()[None]), matrix, out=total)
        pieces = total[0].split([t.numel() for t in out])
        torch._foreach_copy_(out, [p.view_as(t) for p, t in zip(pieces, out, strict=True)])

    def ours(backend: str) -> None:
        gram = modgrad.group_gram(per_loss, group, 1, backend=backend)
        modgrad.combine_(out, per_loss, group, weights(gram), backend=backend)

    providers: dict[str, Callable[[], Any]] = {"concatenated": stacked}
    providers |= {f"modgrad, {name}": partial(ours, name) for name in kernels(device)}
    missing = {"TorchJD": reason} if (reason := torchjd.why_not()) else {}
    if not missing:
        providers["TorchJD"] = torchjd.aligned_mtl(per_loss, out)

    def check() -> None:
        ours("reference")
        expected = [t.clone() for t in out]
        for provider in providers.values():
            torch._foreach_zero_(out)
            provider()
            torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-3)

    size = (2 * K + 1) * _bytes(out)  # read for the gram, read for the sum, written
    config = _config(shapes, torch.float32, losses=K)
    name = "aggregation, Aligned-MTL"
    return Case(name, providers, check, config, bytes=size, cold=True, missing=missing)
