"""The whole ``optimizer.step()`` over many tensors: what the host does counts here."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import modgrad
from modgrad.bench.case import Case, Kind
from modgrad.bench.models import tensors

WEIGHTS = {"first": 0.999, "second": 1.001}  # about 1: gradients may be scaled a thousand times


def optimizer_step(shapes: str, device: str) -> Case:
    """AdamW as torch has it, and inside ModulatedOptimizer; all over the same tensors."""
    start, group = tensors(shapes, device)
    model = nn.Module()
    model.first, model.second = (
        nn.ParameterList(t.clone() for t, g in zip(start, group, strict=True) if g == m)
        for m in range(2)
    )
    params = list(model.parameters())
    grads = [torch.randn_like(p) for p in params]
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad

    def adamw(**options: Any) -> torch.optim.AdamW:
        return torch.optim.AdamW(params, lr=1e-6, **options)

    def modulated(
        optimizer: torch.optim.Optimizer, balancer: Any = None, **options: Any
    ) -> torch.optim.Optimizer:
        modalities = modgrad.Modalities(model, first="first", second="second")
        balancer = balancer or modgrad.FixedWeights(WEIGHTS)
        return modgrad.ModulatedOptimizer(optimizer, modalities, balancer, **options)

    norms = frozenset({"grad_sq_norms"})
    by_norms = modgrad.EqualNorms(cap=1.0)
    clipped, scaled, ours_scaled = adamw(fused=True), adamw(fused=True), modulated(adamw())
    norms_scaled = modulated(adamw(), by_norms)

    def clip() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1e9)
        clipped.step()

    def scaled_step(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
        """The scale is 1, which costs what any other does, and leaves the gradients."""
        scaler.step(optimizer)
        scaler.update()

    scalers = [
        kind(device, init_scale=1.0, growth_interval=10**9)
        for kind in (torch.amp.GradScaler, modgrad.GradScaler, modgrad.GradScaler)
    ]
    for scaler in scalers:
        scaler.scale(torch.ones((), device=device))  # makes its state

    optimizers: dict[str, torch.optim.Optimizer] = {
        "AdamW(fused=True)": adamw(fused=True),
        "AdamW()": adamw(),
        "modgrad over AdamW(fused=True)": modulated(adamw(fused=True)),
        "modgrad over AdamW()": modulated(adamw()),
        "modgrad over AdamW(fused=True), norms": modulated(adamw(fused=True), record=norms),
        "modgrad over AdamW(fused=True), by norms": modulated(adamw(fused=True), by_norms),
    }
    providers: dict[str, Callable[[], Any]] = {
        name: partial(optimizer.step) for name, optimizer in optimizers.items()
    }
    providers["clip_grad_norm_, AdamW(fused=True)"] = clip
    providers["GradScaler, AdamW(fused=True)"] = partial(scaled_step, scalers[0], scaled)
    providers["modgrad.GradScaler, modgrad"] = partial(scaled_step, scalers[1], ours_scaled)
    providers["modgrad.GradScaler, modgrad, by norms"] = partial(
        scaled_step, scalers[2], norms_scaled
    )
    stepping = {
        **optimizers,
        "clip_grad_norm_, AdamW(fused=True)": clipped,
        "GradScaler, AdamW(fused=True)": scaled,
        "modgrad.GradScaler, modgrad": ours_scaled,
        "modgrad.GradScaler, modgrad, by norms": norms_scaled,
    }

    def first_moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
        return [optimizer.state[p]["exp_avg"] for p in params]

    def check() -> None:
        """The first moments after the first step."""
        weights = [list(WEIGHTS.values())[m] for m in sorted(group)]
        for name, provider in providers.items():
            scale = weights if name.startswith("modgrad") else [1.0] * len(params)
            if name.endswith("by norms"):  # capped to 1
                scale = [1.0] * len(params)
            now = [p.grad.clone() for p in params if p.grad is not None]
            expected = [0.1 * g * w for g, w in zip(now, scale, strict=True)]
            if stepping[name].state:
                continue  # checked, and no longer in its first step
            provider()
            torch.testing.assert_close(first_moments(stepping[name]), expected)

    size = 7 * sum(p.numel() * p.element_size() for p in params)
    config = {"shapes": shapes, "dtype": "float32"}
    kind: Kind = "optimizer step"
    return Case("optimizer step", providers, check, config, kind, bytes=size, cold=True)
