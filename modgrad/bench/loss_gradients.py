"""Cases of the ops over the gradients of several losses."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import modgrad
from modgrad.balancers import AlignedMTL, MMPareto, Statistics
from modgrad.bench import baselines, torchjd
from modgrad.bench.case import Case, kernels, launches
from modgrad.bench.gradients import bytes_of, config_of, is_ours
from modgrad.bench.models import tensors

K = 3  # losses: a joint one and two unimodal ones


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
            tolerance = 1e-10 if is_ours(name) else 1e-2
            found = provider().to(expected)
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)

    size = sum(map(bytes_of, per_loss))
    config = config_of(shapes, dtype, losses=losses)
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

    size = (K + 1) * bytes_of(out)
    config = config_of(shapes, dtype, losses=K)
    return Case("combine_", providers, check, config, bytes=size, cold=True)


def balance_(shapes: str, device: str, dtype: torch.dtype = torch.float32) -> Case:
    """MMPareto: products of the gradients of K losses, weights from them, and weighted sums."""
    per_loss, group = _several(shapes, device, dtype, K)
    split = [baselines.by_group(grads, group, 2) for grads in per_loss]
    of_group = [[each[g] for each in split] for g in range(2)]
    out = [torch.empty_like(t) for t in per_loss[0]]
    targets = baselines.by_group(out, group, 2)
    spare = [[torch.empty_like(t) for t in each] for each in targets]
    matrices = [each[0][0].new_empty(K, sum(t.numel() for t in each[0])) for each in of_group]
    balancer, zero = MMPareto(), torch.zeros((), dtype=torch.int64, device=device)
    state, rule = balancer.init(("audio", "visual"), K, torch.device(device)), balancer.rule
    assert rule is not None, "it has one, unless weights are per tensor"

    def foreach() -> None:
        gram = baselines.stacked_group_gram(of_group, matrices).double()
        modulation, _ = balancer.update(Statistics(zero, zero, gram=gram), state)
        weights = modulation.weights.broadcast_to(2, K).float()
        baselines.foreach_combine_(targets, of_group, weights, spare)

    def in_parts(backend: str) -> None:
        gram = modgrad.group_gram(per_loss, group, 2, backend=backend)
        weights, _ = modgrad.rule_weights(gram, rule, backend=backend)
        modgrad.combine_(out, per_loss, group, weights, backend=backend)

    def at_once(backend: str) -> None:
        modgrad.balance_(per_loss, group, 2, rule, out=out, backend=backend)

    providers: dict[str, Callable[[], Any]] = {"concatenated, foreach": foreach}
    for name in kernels(device):
        providers[f"modgrad, {name}"] = partial(at_once, name)
        providers[f"modgrad, {name}, three ops"] = partial(in_parts, name)
    providers |= launches(device, partial(at_once, "native"))

    def check() -> None:
        at_once("reference")
        expected = [t.clone() for t in out]
        # weights of products in the gradients' own dtype, then a rounding a loss, of terms below 30
        tolerance = 100 * torch.finfo(dtype).eps
        for provider in providers.values():
            torch._foreach_zero_(out)
            provider()
            torch.testing.assert_close(out, expected, rtol=tolerance, atol=30 * tolerance)

    size = (2 * K + 1) * bytes_of(out)  # read for the gram, read for the sum, written
    config = config_of(shapes, dtype, losses=K)
    return Case("balance_, 3 losses", providers, check, config, bytes=size, cold=True)


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

    size = (2 * K + 1) * bytes_of(out)  # read for the gram, read for the sum, written
    config = config_of(shapes, torch.float32, losses=K)
    name = "aggregation, Aligned-MTL"
    return Case(name, providers, check, config, bytes=size, cold=True, missing=missing)
