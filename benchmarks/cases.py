"""What is measured: each case checks that its providers agree, then hands them to the timer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import baselines
import models
import torch
import torch.nn.functional as F
from torch import Tensor

import modgrad
from modgrad.backends import why_not

ALPHA = 0.3


@dataclass
class Case:
    """Providers of one result, the first of which the others are divided by."""

    name: str
    providers: dict[str, Callable[[], Any]]
    check: Callable[[], None]
    bytes: int | None = None  # that have to move at least once; None where no floor is meaningful
    config: dict[str, Any] = field(default_factory=dict)


def kernels(device: str) -> list[str]:
    """The backends worth timing: not Triton's interpreter."""
    usable = [name for name, reason in why_not(device).items() if reason is None]
    return [name for name in usable if device == "cuda" or name != "triton"]


def _tensors(shapes: str, device: str, dtype: torch.dtype) -> tuple[list[Tensor], list[int]]:
    tensors = [torch.randn(s, device=device).to(dtype) for s in models.parameter_shapes(shapes)]
    return tensors, [i % 2 for i in range(len(tensors))]


def group_sq_norms(shapes: str, device: str, dtype: torch.dtype) -> Case:
    """Squared norms per modality."""
    tensors, group = _tensors(shapes, device, dtype)
    providers: dict[str, Callable[[], Any]] = {
        "foreach": lambda: baselines.foreach_group_sq_norms(tensors, group, 2),
        "papers' loop": lambda: baselines.loop_group_sq_norms(tensors, group, 2),
    }
    for name in kernels(device):
        providers[name] = lambda b=name: modgrad.group_sq_norms(tensors, group, 2, backend=b)

    def check() -> None:
        expected = torch.zeros(2, dtype=torch.float64)
        for tensor, g in zip(tensors, group, strict=True):
            expected[g] += tensor.double().square().sum().cpu()
        for name, provider in providers.items():
            # the baselines add in float32 or half precision
            tolerance = 1e-10 if name in why_not(device) else 1e-2
            torch.testing.assert_close(provider().double().cpu(), expected, rtol=tolerance, atol=0)

    size = sum(t.numel() * t.element_size() for t in tensors)
    config = {"shapes": shapes, "dtype": str(dtype).removeprefix("torch.")}
    return Case("group_sq_norms", providers, check, size, config)


def modulate_(shapes: str, device: str, dtype: torch.dtype) -> Case:
    """Gradients scaled in place, every modality by a weight of its own."""
    tensors, group = _tensors(shapes, device, dtype)
    # far from 1 and back, so that no run of a thousand leaves the range of floats
    weights = torch.tensor([0.999, 1.001], device=device)
    providers: dict[str, Callable[[], Any]] = {
        "foreach": lambda: baselines.foreach_modulate_(tensors, group, weights),
        "papers' loop": lambda: baselines.loop_modulate_(tensors, group, weights),
    }
    for name in kernels(device):
        providers[name] = lambda b=name: modgrad.modulate_(tensors, group, weights, backend=b)

    def check() -> None:
        for provider in providers.values():
            expected = [
                (t.float() * weights[g]).to(dtype) for t, g in zip(tensors, group, strict=True)
            ]
            provider()
            torch.testing.assert_close(tensors, expected)

    size = 2 * sum(t.numel() * t.element_size() for t in tensors)
    config = {"shapes": shapes, "dtype": str(dtype).removeprefix("torch.")}
    return Case("modulate_", providers, check, size, config)


def modality_cross_entropy(
    batch_size: int, num_classes: int, device: str, dtype: torch.dtype
) -> Case:
    """Cross entropies of three modalities, forward and backward."""
    shape = batch_size, num_classes
    logits = [torch.randn(shape, device=device, dtype=dtype).requires_grad_() for _ in range(3)]
    targets = torch.randint(0, num_classes, (batch_size,), device=device)

    def loop(*logits: Tensor) -> Tensor:
        losses = [F.cross_entropy(x.float(), targets) for x in logits]
        return losses[0] + losses[1] + losses[2]

    def ours(backend: str) -> Tensor:
        return modgrad.modality_cross_entropy(logits, targets, backend=backend).losses.sum()

    def run(total: Callable[[], Tensor]) -> list[Tensor]:
        for x in logits:
            x.grad = None
        total().backward()
        return [x.grad for x in logits if x.grad is not None]

    compiled = torch.compile(loop)
    providers: dict[str, Callable[[], Any]] = {
        "F.cross_entropy, looped": lambda: run(lambda: loop(*logits)),
        "the loop compiled": lambda: run(lambda: compiled(*logits)),
    }
    for name in kernels(device):
        providers[f"modgrad, {name}"] = lambda b=name: run(lambda: ours(b))

    def check() -> None:
        expected = torch.autograd.grad(loop(*logits), logits)
        for provider in providers.values():
            torch.testing.assert_close(provider(), list(expected))

    # logits read twice, their gradients written
    size = 3 * sum(x.numel() * x.element_size() for x in logits)
    config: dict[str, Any] = {"batch": batch_size, "classes": num_classes, "modalities": 3}
    config["dtype"] = str(dtype).removeprefix("torch.")
    return Case("modality_cross_entropy", providers, check, size, config)


def modulated_adamw_(shapes: str, device: str, dtype: torch.dtype) -> Case:
    """AdamW, every modality's gradients by a weight of its own; the first provider has none."""
    params, group = _tensors(shapes, device, dtype)
    grads = [torch.randn_like(p) for p in params]
    weights = torch.tensor([0.5, 1.5], device=device)
    sq_norms = torch.empty(2, 2, dtype=torch.float64, device=device)
    start = [p.clone() for p in params]
    first, second = ([torch.zeros_like(p) for p in params] for _ in range(2))
    steps = [torch.zeros((), device=device) for _ in params]
    options = {"lr": 1e-3, "eps": 1e-8, "weight_decay": 1e-2}

    def fused(gradients: list[Tensor]) -> None:
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            *(params, gradients, first, second, [], steps),
            **dict(amsgrad=False, maximize=False, beta1=0.9, beta2=0.999, **options),
        )

    def foreach_then_fused() -> None:
        # into new tensors: gradients scaled in place a thousand times would vanish
        scaled = list(grads)
        for g in range(2):
            own = [i for i, owner in enumerate(group) if owner == g]
            products = torch._foreach_mul([grads[i] for i in own], weights[g])
            for i, product in zip(own, products, strict=True):
                scaled[i] = product
        fused(scaled)

    def ours(backend: str, **more: Any) -> None:
        modgrad.modulated_adamw_(
            *(params, grads, first, second, steps, group, weights),
            **dict(backend=backend, **options, **more),
        )

    providers: dict[str, Callable[[], Any]] = {
        "fused, no weights": lambda: fused(grads),
        "foreach, fused": foreach_then_fused,
    }
    for name in kernels(device):
        providers[name] = lambda b=name: ours(b)
        providers[f"{name}, norms"] = lambda b=name: ours(b, sq_norms=sq_norms)

    def check() -> None:
        """The first moments after one step; those of the first provider are without weights."""
        for name, provider in providers.items():
            for tensors in (first, second, steps):
                torch._foreach_zero_(tensors)
            torch._foreach_copy_(params, start)
            provider()
            plain = name == "fused, no weights"
            expected = [
                0.1 * x.float() * (1.0 if plain else weights[g])
                for x, g in zip(grads, group, strict=True)
            ]
            torch.testing.assert_close(first, [x.to(dtype) for x in expected])

    size = 7 * sum(t.numel() * t.element_size() for t in params)
    config = {"shapes": shapes, "dtype": str(dtype).removeprefix("torch.")}
    return Case("modulated_adamw_", providers, check, size, config)


def training_step(device: str, batch_size: int, pixels: int) -> Case:
    """A whole step of 2x ResNet-18 with SGD: forward, loss, backward, OGM, update."""
    model = models.AudioVisual().to(device)
    inputs, targets = models.audio_visual_batch(batch_size, pixels, device)
    start = [p.detach().clone() for p in model.parameters()]
    encoders = [model.audio_net, model.visual_net]

    def sgd() -> torch.optim.SGD:
        return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def wrapped(at: Literal["parameters", "boundary"]) -> modgrad.ModulatedOptimizer:
        modalities = modgrad.Modalities(model, audio="audio_net", visual="visual_net")
        return modgrad.ModulatedOptimizer(sgd(), modalities, modgrad.OGM(ALPHA), at=at)

    plain, loop, foreach = sgd(), sgd(), sgd()
    parameters, boundary = wrapped("parameters"), wrapped("boundary")

    def head(features: dict[str, Tensor]) -> Tensor:
        return model.head(torch.cat(list(features.values()), dim=1))

    def logits(features: dict[str, Tensor]) -> list[Tensor]:
        return list(modgrad.late_fusion_logits(features, model.head).values())

    def run(optimizer: torch.optim.Optimizer, balance: Callable[[dict[str, Tensor]], None]) -> None:
        optimizer.zero_grad()
        features = model.encode(inputs)
        F.cross_entropy(head(features), targets).backward()
        balance(features)
        optimizer.step()

    def observed() -> None:
        parameters.zero_grad()
        features = model.encode(inputs)
        output = head(features)
        parameters.observe(features=features, head=model.head, targets=targets)
        F.cross_entropy(output, targets).backward()
        parameters.step()

    def at_boundary() -> None:
        boundary.zero_grad()
        features = boundary.modulator.scale_backward(model.encode(inputs))
        output = head(features)
        boundary.observe(features=features, head=model.head, targets=targets)
        F.cross_entropy(output, targets).backward()
        boundary.step()

    def gradients() -> list[list[Tensor]]:
        return [[p.grad for p in e.parameters() if p.grad is not None] for e in encoders]

    providers: dict[str, Callable[[], Any]] = {
        "plain": lambda: run(plain, lambda _: None),
        "plain again": lambda: run(plain, lambda _: None),  # what the noise looks like
        "papers' loop": lambda: run(
            loop, lambda f: baselines.papers_ogm(encoders, logits(f), targets, ALPHA)
        ),
        "foreach": lambda: run(
            foreach, lambda f: baselines.foreach_ogm(gradients(), logits(f), targets, ALPHA)
        ),
        "modgrad, parameters": observed,
        "modgrad, boundary": at_boundary,
    }

    def check() -> None:
        """One step from one start ends in one place, and not where plain training ends."""
        ends = {}
        for name, provider in providers.items():
            with torch.no_grad():
                for p, value in zip(model.parameters(), start, strict=True):
                    p.copy_(value)
            provider()
            ends[name] = [p.detach() - q for p, q in zip(model.parameters(), start, strict=True)]
        reference = torch.cat([d.flatten() for d in ends["papers' loop"]])
        for name, update in ends.items():
            error = (torch.cat([d.flatten() for d in update]) - reference).norm() / reference.norm()
            if name.startswith("plain") != bool(error > 1e-2):
                raise AssertionError(f"{name}: update differs from the papers' loop by {error:.1e}")

    config = {"batch": batch_size, "pixels": pixels, "balancer": f"OGM(alpha={ALPHA})"}
    return Case("training step, 2x resnet18", providers, check, None, config)
