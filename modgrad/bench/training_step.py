"""A whole training step of a real network: what balancing adds to it."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import modgrad
from modgrad.bench import baselines
from modgrad.bench.case import COMPILED, Case
from modgrad.bench.models import Setting

ALPHA = 0.3
PARTS = "forward", "forward and backward"


def training_step(
    setting: Setting, method: Literal["sgd", "adamw"], compiled: bool = False
) -> Case:
    """Forward, loss, backward, OGM, update; and the first two alone."""
    model, inputs, targets, config = setting
    start = [p.detach().clone() for p in model.parameters()]
    encoders = list(model.encoders.values())

    def stock() -> torch.optim.Optimizer:
        if method == "sgd":
            return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        return torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def wrapped(at: Literal["parameters", "boundary"]) -> modgrad.ModulatedOptimizer:
        modalities = modgrad.Modalities(
            model, **{name: f"encoders.{name}" for name in model.encoders}
        )
        return modgrad.ModulatedOptimizer(stock(), modalities, modgrad.OGM(ALPHA), at=at)

    parameters, boundary = wrapped("parameters"), wrapped("boundary")
    weights_of = torch.compile(_weights) if compiled else _weights

    def logits(features: dict[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(modgrad.late_fusion_logits(features, model.head).values())

    def gradients() -> list[list[Tensor]]:
        return [[p.grad for p in e.parameters() if p.grad is not None] for e in encoders]

    def run(optimizer: torch.optim.Optimizer, balance: Callable[[dict[str, Tensor]], None]) -> None:
        optimizer.zero_grad()
        features = model.encode(inputs)
        F.cross_entropy(model.fuse(features), targets).backward()
        balance(features)
        optimizer.step()

    def loop(features: dict[str, Tensor]) -> None:
        baselines.papers_ogm(encoders, logits(features), targets, ALPHA)

    def foreach(features: dict[str, Tensor]) -> None:
        baselines.foreach_ogm(gradients(), logits(features), targets, ALPHA)

    def foreach_compiled(features: dict[str, Tensor]) -> None:
        baselines.foreach_modulate_(gradients(), weights_of(logits(features), targets))

    def forward() -> None:
        F.cross_entropy(model.fuse(model.encode(inputs)), targets)

    def forward_and_backward() -> None:
        model.zero_grad()
        F.cross_entropy(model.fuse(model.encode(inputs)), targets).backward()

    def observed() -> None:
        parameters.zero_grad()
        features = model.encode(inputs)
        output = model.fuse(features)
        parameters.observe(features=features, head=model.head, targets=targets)
        F.cross_entropy(output, targets).backward()
        parameters.step()

    def at_boundary() -> None:
        boundary.zero_grad()
        features = boundary.modulator.scale_backward(model.encode(inputs))
        output = model.fuse(features)
        boundary.observe(features=features, head=model.head, targets=targets)
        F.cross_entropy(output, targets).backward()
        boundary.step()

    optimizers = {"plain": stock(), "papers' loop": stock(), "foreach": stock()}
    steps: dict[str, Callable[[], Any]] = {
        "plain": partial(run, optimizers["plain"], lambda _: None),
        "papers' loop": partial(run, optimizers["papers' loop"], loop),
        "foreach": partial(run, optimizers["foreach"], foreach),
        "modgrad, parameters": observed,
        "modgrad, boundary": at_boundary,
    }
    optimizers |= {"modgrad, parameters": parameters, "modgrad, boundary": boundary}
    if compiled:
        optimizers[f"foreach{COMPILED}"] = optimizer = stock()
        steps[f"foreach{COMPILED}"] = partial(run, optimizer, foreach_compiled)
    providers = {**steps, PARTS[0]: forward, PARTS[1]: forward_and_backward}

    def moments(optimizer: torch.optim.Optimizer) -> Tensor:
        key = "momentum_buffer" if method == "sgd" else "exp_avg"
        return torch.cat([optimizer.state[p][key].flatten() for p in model.parameters()])

    def check() -> None:
        """First steps from one start have the same first moments, and not those of plain."""
        found = {}
        for name, step in steps.items():
            with torch.no_grad():
                torch._foreach_copy_(list(model.parameters()), start)
            optimizers[name].state.clear()
            step()
            found[name] = moments(optimizers[name])
        reference = found["papers' loop"]
        for name, value in found.items():
            error = float((value - reference).norm() / reference.norm())
            if (name == "plain") != (error > 1e-2):
                raise AssertionError(f"{name} differs from the papers' loop by {error:.1e}")

    config = {**config, "balancer": f"OGM(alpha={ALPHA})", "optimizer": method}
    config |= {"parameters": sum(p.numel() for p in start), "dtype": "float32"}
    return Case("training step", providers, check, config, "training step")


def _weights(logits: list[Tensor], targets: Tensor) -> Tensor:
    return baselines.ogm_weights(baselines.stacked_scores(logits, targets), ALPHA)
