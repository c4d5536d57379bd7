"""Every balancer in a whole training step, beside a plain step of the same losses."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import modgrad
from modgrad.balancers import FixedLossWeights, RandomRebalancing
from modgrad.bench import torchjd
from modgrad.bench.case import Case
from modgrad.bench.models import Setting

FUSION = {"audio": "audio_last", "visual": "visual_last"}
LOSSES = "joint", "audio", "visual"


def _sgd(setting: Setting) -> torch.optim.SGD:
    return torch.optim.SGD(setting.model.parameters(), lr=1e-4, momentum=0.9)


def two_modalities(setting: Setting) -> modgrad.Modalities:
    """The two encoders."""
    return modgrad.Modalities(setting.model, audio="encoders.audio", visual="encoders.visual")


def branches(setting: Setting) -> modgrad.Modalities:
    """The last block of each ResNet stands for the fusion layers of conditional learning speed."""
    groups = {}
    for name, last in FUSION.items():
        groups[name] = [f"encoders.{name}.{i}.*" for i in (0, 1, *range(4, 11))]
        groups[last] = [f"encoders.{name}.11.*"]
    return modgrad.Modalities(setting.model, **groups)


def one_loss(setting: Setting) -> Case:
    """Balancers of one loss; the first provider has none."""
    model, inputs, targets, _ = setting
    plain = _sgd(setting)

    def plainly() -> None:
        plain.zero_grad()
        F.cross_entropy(model.fuse(model.encode(inputs)), targets).backward()
        plain.step()

    def observed(optimizer: modgrad.ModulatedOptimizer) -> None:
        optimizer.zero_grad()
        features = model.encode(inputs)
        output = model.fuse(features)
        optimizer.observe(features=features, head=model.head, targets=targets)
        F.cross_entropy(output, targets).backward()
        optimizer.step()

    def by_responses(optimizer: modgrad.ModulatedOptimizer) -> None:
        """AGM by the shortcut for late fusion: no further forward pass."""
        optimizer.zero_grad()
        responses = modgrad.late_fusion_responses(model.encode(inputs), model.head)
        optimizer.observe(responses=responses, targets=targets)
        output = torch.stack(list(optimizer.modulator.scale_backward(responses).values())).sum(0)
        F.cross_entropy(output, targets).backward()
        optimizer.step()

    def step(balancer: Any, modalities: modgrad.Modalities) -> Callable[[], None]:
        return partial(observed, modgrad.ModulatedOptimizer(_sgd(setting), modalities, balancer))

    two, four = two_modalities(setting), branches(setting)
    agm = modgrad.ModulatedOptimizer(_sgd(setting), two, modgrad.AGM(), at="boundary")
    providers: dict[str, Callable[[], Any]] = {
        "plain": plainly,
        "FixedWeights": step(modgrad.FixedWeights({"audio": 0.5}), two),
        "OGM": step(modgrad.OGM(0.3), two),
        "EqualNorms": step(modgrad.EqualNorms(), two),
        "OGM with GE noise": step(modgrad.OGM(0.3, noise=1.0), two),
        "AGM, late fusion": partial(by_responses, agm),
        "ConditionalLearningSpeed": step(modgrad.ConditionalLearningSpeed(FUSION), four),
        "RandomRebalancing": step(RandomRebalancing(FUSION), four),
    }
    return _case("one loss", setting, providers, losses=1)


def three_losses(setting: Setting) -> Case:
    """Balancers of a joint and two unimodal losses; the first provider adds them up."""
    model, inputs, targets, _ = setting

    def losses() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        features = model.encode(inputs)
        logits = modgrad.late_fusion_logits(features, model.head)
        joint = torch.stack(list(logits.values())).sum(0)
        named = {"joint": joint, **logits}
        return {name: F.cross_entropy(x, targets) for name, x in named.items()}, logits

    def balanced(optimizer: modgrad.ModulatedOptimizer, observes: bool) -> None:
        optimizer.zero_grad()
        values, logits = losses()
        if observes:
            optimizer.observe(logits=logits, targets=targets)
        optimizer.backward(values)
        optimizer.step()

    def by_torch(optimizer: torch.optim.Optimizer, fill: Callable[[list[Tensor]], None]) -> None:
        optimizer.zero_grad()
        values, _ = losses()
        fill(list(values.values()))
        optimizer.step()

    def add_up(values: list[Tensor]) -> None:
        torch.stack(values).sum().backward()

    providers: dict[str, Callable[[], Any]] = {
        "plain sum": partial(by_torch, _sgd(setting), add_up)
    }
    methods: dict[str, modgrad.balancers.Balancer[Any]] = {
        "FixedLossWeights": FixedLossWeights([1.0, 0.5, 0.5]),
        "GradientBlending": modgrad.GradientBlending(),
        "DWA": modgrad.DWA(),
        "UncertaintyWeighting": modgrad.UncertaintyWeighting(),
        "PMR's weights": modgrad.PMR(),
        "GradNorm": modgrad.GradNorm(),
        "MGDA": modgrad.MGDA(),
        "PCGrad": modgrad.PCGrad(),
        "CAGrad": modgrad.CAGrad(),
        "AlignedMTL": modgrad.AlignedMTL(),
        "UPGrad": modgrad.UPGrad(),
        "MMPareto": modgrad.MMPareto(),
        "MMPareto, per tensor": modgrad.MMPareto(per_tensor=True),
    }
    modalities = two_modalities(setting)
    for name, balancer in methods.items():
        optimizer = modgrad.ModulatedOptimizer(_sgd(setting), modalities, balancer, losses=LOSSES)
        providers[name] = partial(balanced, optimizer, "scores" in balancer.needs)
    missing = {"TorchJD, AlignedMTL": reason} if (reason := torchjd.why_not()) else {}
    if not missing:
        fill, parameters = torchjd.backward("AlignedMTL"), list(model.parameters())
        providers["TorchJD, AlignedMTL"] = partial(
            by_torch, _sgd(setting), lambda values: fill(values, parameters)
        )
    return _case("three losses", setting, providers, losses=3, missing=missing)


def _case(
    name: str,
    setting: Setting,
    providers: dict[str, Callable[[], Any]],
    losses: int,
    missing: dict[str, str] | None = None,
) -> Case:
    parameters: list[Tensor] = list(setting.model.parameters())
    start = [p.detach().clone() for p in parameters]

    def check() -> None:
        """Every step moves the parameters, by finite numbers; tests/ know by how much."""
        for provider_name, provider in providers.items():
            with torch.no_grad():
                torch._foreach_copy_(parameters, start)
            provider()
            moved = torch.stack([(p - q).norm() for p, q in zip(parameters, start, strict=True)])
            if not (moved.isfinite().all() and moved.sum() > 0):
                raise AssertionError(f"{provider_name} moves the parameters by {moved.sum():.1e}")

    config = {**setting.config, "losses": losses, "optimizer": "sgd", "dtype": "float32"}
    return Case(
        *(f"balancers of {name}", providers, check, config, "balancer"),
        missing=missing or {},
    )
