"""AGM and conditional learning speed in a training step, each beside a loop as it was released."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import modgrad
from modgrad.bench.balancing import FUSION, branches, two_modalities
from modgrad.bench.baselines import PapersAGM, PapersSpeeds, padded_responses
from modgrad.bench.case import Case
from modgrad.bench.models import Setting

ALPHA = 0.5
NEVER = 100.0  # a difference of log10 ratios: every step measures, none re-balances


class Step(NamedTuple):
    """One training step, and the optimizer whose states it fills."""

    optimizer: torch.optim.Optimizer
    run: Callable[[], object]


def with_other_methods(case: Case, setting: Setting) -> Case:
    """A case of training steps of two modalities, and the same of two further methods."""
    model, inputs, targets, _ = setting
    names, parameters = list(inputs), list(model.parameters())

    def sgd() -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)

    def update(optimizer: torch.optim.Optimizer, output: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(output, targets).backward()
        optimizer.step()

    def forward(present: set[str] | frozenset[str]) -> Tensor:
        return model.fuse(model.encode(modgrad.masked(inputs, present)))

    def whole() -> Tensor:
        return model.fuse(model.encode(inputs))

    def all_passes() -> dict[str, Tensor]:
        return modgrad.mono_modal_responses(forward, names, model=model)

    def one_pass() -> dict[str, Tensor]:
        return modgrad.late_fusion_responses(model.encode(inputs), model.head)

    def agm(responses: Callable[[], dict[str, Tensor]]) -> Step:
        modalities, balancer = two_modalities(setting), modgrad.AGM(ALPHA)
        optimizer = modgrad.ModulatedOptimizer(sgd(), modalities, balancer, at="boundary")

        def run() -> None:
            found = responses()
            optimizer.observe(responses=found, targets=targets)
            scaled = list(optimizer.modulator.scale_backward(found).values())
            update(optimizer, torch.stack(scaled).sum(0))

        return Step(optimizer, run)

    def agm_loop(responses: Callable[[], Sequence[Tensor]]) -> Step:
        optimizer, balance = sgd(), PapersAGM(ALPHA)
        return Step(optimizer, lambda: update(optimizer, balance(responses(), targets)))

    groups = branches(setting)
    balancer = modgrad.ConditionalLearningSpeed(FUSION, tolerance=NEVER)
    of_speed, of_loop = modgrad.ModulatedOptimizer(sgd(), groups, balancer), sgd()
    held, index = groups.assign(parameters)
    measure = PapersSpeeds(
        {m: [p for p, g in zip(held, index, strict=True) if g == i] for i, m in enumerate(groups)},
        FUSION,
    )

    def measured() -> None:
        of_loop.zero_grad()
        F.cross_entropy(whole(), targets).backward()
        measure()
        of_loop.step()

    steps = {
        "modgrad, AGM": agm(one_pass),
        "papers' loop, AGM": agm_loop(lambda: padded_responses(model, forward, names)),
        "modgrad, learning speed": Step(of_speed, lambda: update(of_speed, whole())),
        "papers' loop, learning speed": Step(of_loop, measured),
    }
    # the loop has all passes and modgrad one: each is checked against its like
    alike = {
        "modgrad, AGM": agm_loop(lambda: list(one_pass().values())),
        "papers' loop, AGM": agm(all_passes),
        "modgrad, learning speed": steps["papers' loop, learning speed"],
    }
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # or untrained statistics make the passes in eval mode fade
    start = {name: x.clone() for name, x in model.state_dict().items()}
    start["head.weight"][:, :512] *= 10  # unequal modalities: coefficients far from 1

    def first_moments(step: Step) -> Tensor:
        model.load_state_dict(start)
        step.optimizer.state.clear()
        step.run()
        return torch.cat([step.optimizer.state[p]["momentum_buffer"].flatten() for p in parameters])

    def check() -> None:
        """One start, one step: first moments, and the speeds. AGM's are not plain training's."""
        case.check()
        found = {name: first_moments(step) for name, step in steps.items()}
        for name, other in alike.items():
            error = _distance(first_moments(other), found[name])
            if error > 1e-3:
                raise AssertionError(f"{name} differs from its like by {error:.1e}")
        for name in ("modgrad, AGM", "papers' loop, AGM"):
            if _distance(found[name], found["modgrad, learning speed"]) < 0.02:
                raise AssertionError(f"{name} is plain training")
        speeds = balancer.speeds(of_speed.modulator.state).tolist()
        if any(abs(a - b) > 1e-3 for a, b in zip(speeds, measure.speeds, strict=True)):
            raise AssertionError(f"learning speeds: {speeds}, by the loop {measure.speeds}")

    providers = {**case.providers, **{name: step.run for name, step in steps.items()}}
    return replace(case, providers=providers, check=check)


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
