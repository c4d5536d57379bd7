"""Cases of the ops around the loss. Caches stay warm: the forward pass has just written logits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import modgrad
from modgrad import rules
from modgrad.bench import baselines
from modgrad.bench.case import COMPILED, Case, kernels, launches


def _batch(
    batch: int, classes: int, modalities: int, device: str, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor, dict[str, Any]]:
    logits = [torch.randn(batch, classes, device=device, dtype=dtype) for _ in range(modalities)]
    targets = torch.randint(0, classes, (batch,), device=device)
    config: dict[str, Any] = {"batch": batch, "classes": classes, "modalities": modalities}
    return logits, targets, {**config, "dtype": str(dtype).removeprefix("torch.")}


def modality_scores(
    batch: int,
    classes: int,
    device: str,
    dtype: torch.dtype = torch.float32,
    modalities: int = 3,
    loop: bool = True,
    compiled: bool = False,
) -> Case:
    """Mean probability of the true class by each modality."""
    logits, targets, config = _batch(batch, classes, modalities, device, dtype)
    providers: dict[str, Callable[[], Any]] = {
        "one softmax": partial(baselines.stacked_scores, logits, targets)
    }
    if loop:
        providers["papers' loop"] = partial(baselines.papers_scores, logits, targets)
    if compiled:
        scores = torch.compile(baselines.stacked_scores)
        providers[f"one softmax{COMPILED}"] = partial(scores, logits, targets)
    for name in kernels(device):
        run = partial(modgrad.modality_scores, logits, targets, backend=name)
        providers[f"modgrad, {name}"] = run
    native = partial(modgrad.modality_scores, logits, targets, backend="native")
    providers |= launches(device, native)

    def check() -> None:
        expected = baselines.stacked_scores([x.double() for x in logits], targets).float()
        for name, provider in providers.items():
            found = provider()
            if name == "papers' loop":  # it adds where the mean divides; ratios are the same
                found = torch.stack(found).float() / batch
            rough = dtype != torch.float32 and not name.startswith("modgrad")
            tolerance = 5e-2 if rough else 1e-5  # a sum of a batch in half precision
            torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=0)

    size = sum(x.numel() * x.element_size() for x in logits)
    return Case("modality_scores", providers, check, config, bytes=size)


def scale_backward(
    batch: int, width: int, device: str, dtype: torch.dtype = torch.float32, modalities: int = 3
) -> Case:
    """Features through the boundary, and their gradients back through it, scaled."""
    names = [f"m{i}" for i in range(modalities)]
    shape = batch, width
    features = {n: torch.randn(shape, device=device, dtype=dtype).requires_grad_() for n in names}
    incoming = [torch.randn(shape, device=device, dtype=dtype) for _ in names]
    weights = torch.rand(modalities, device=device)

    def run(forward: Callable[[], dict[str, Tensor]]) -> list[Tensor]:
        return list(
            torch.autograd.grad(list(forward().values()), list(features.values()), incoming)
        )

    def plain() -> dict[str, Tensor]:
        return {name: x.view_as(x) for name, x in features.items()}

    def hooks() -> dict[str, Tensor]:
        out = plain()
        for m, x in enumerate(out.values()):
            x.register_hook(lambda grad, m=m: grad * weights[m].to(grad.dtype))
        return out

    def ours(backend: str) -> dict[str, Tensor]:
        return dict(modgrad.scale_backward(features, weights, backend=backend))

    providers: dict[str, Callable[[], Any]] = {
        "hooks": partial(run, hooks),
        "no weights": partial(run, plain),
    }
    providers |= {f"modgrad, {n}": partial(run, partial(ours, n)) for n in kernels(device)}

    def check() -> None:
        for name, provider in providers.items():
            factors = torch.ones_like(weights) if name == "no weights" else weights
            expected = [(g.float() * w).to(dtype) for g, w in zip(incoming, factors, strict=True)]
            tolerance = 4 * torch.finfo(dtype).eps  # two roundings of the weight, two of products
            torch.testing.assert_close(provider(), expected, rtol=tolerance, atol=0)

    size = 2 * sum(x.numel() * x.element_size() for x in incoming)
    config = {"batch": batch, "width": width, "modalities": modalities}
    config_of_dtype = {"dtype": str(dtype).removeprefix("torch.")}
    return Case("scale_backward", providers, check, {**config, **config_of_dtype}, bytes=size)


def modality_cross_entropy(
    batch: int,
    classes: int,
    device: str,
    dtype: torch.dtype = torch.float32,
    modalities: int = 3,
    compiled: bool = False,
) -> Case:
    """Cross entropies of all modalities, forward and backward."""
    logits, targets, config = _batch(batch, classes, modalities, device, dtype)

    def loop(*logits: Tensor) -> Tensor:
        return torch.stack([F.cross_entropy(x.float(), targets) for x in logits]).sum()

    def ours(backend: str) -> Tensor:
        return modgrad.modality_cross_entropy(logits, targets, backend=backend).losses.sum()

    providers = _gradients("F.cross_entropy", logits, loop, ours, compiled)
    return _of_logits("modality_cross_entropy", logits, providers, config)


def balanced_cross_entropy(
    batch: int,
    classes: int,
    device: str,
    dtype: torch.dtype = torch.float32,
    modalities: int = 3,
    compiled: bool = False,
) -> Case:
    """Losses, scores, OGM's weights and the weighted gradients of all logits."""
    logits, targets, config = _batch(batch, classes, modalities, device, dtype)
    rule = modgrad.OGM(0.3).rule

    def loop(*logits: Tensor) -> Tensor:
        each = torch.stack([F.cross_entropy(x.float(), targets) for x in logits])
        scores = baselines.stacked_scores([x.detach().float() for x in logits], targets)
        return (each * rules.weights(rule, scores)[0][:, 0]).sum()

    def ours(backend: str) -> Tensor:
        return modgrad.balanced_cross_entropy(logits, targets, rule, backend=backend).losses.sum()

    providers = _gradients("F.cross_entropy, softmax, OGM", logits, loop, ours, compiled)
    return _of_logits("balanced_cross_entropy", logits, providers, config)


def _gradients(
    first: str,
    logits: list[Tensor],
    loop: Callable[..., Tensor],
    ours: Callable[[str], Tensor],
    compiled: bool,
) -> dict[str, Callable[[], Any]]:
    """The gradients of the logits, by stock calls (called ``first``) and by every backend."""
    for x in logits:
        x.requires_grad_()

    def run(total: Callable[[], Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(total(), logits))

    providers: dict[str, Callable[[], Any]] = {first: partial(run, partial(loop, *logits))}
    if compiled:
        fused = torch.compile(loop)
        providers[first + COMPILED] = partial(run, partial(fused, *logits))
    device = logits[0].device.type
    providers |= {f"modgrad, {n}": partial(run, partial(ours, n)) for n in kernels(device)}
    return providers | launches(device, partial(run, partial(ours, "native")))


def _of_logits(
    name: str,
    logits: list[Tensor],
    providers: dict[str, Callable[[], Any]],
    config: dict[str, Any],
) -> Case:
    """Logits are read twice, their gradients written."""

    def check() -> None:
        expected = next(iter(providers.values()))()
        for provider in providers.values():
            torch.testing.assert_close(provider(), expected)

    size = 3 * sum(x.numel() * x.element_size() for x in logits)
    return Case(name, providers, check, config, bytes=size)
