"""Cases of deciding: a dozen operations on a handful of numbers, where calls are what counts."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import modgrad
from modgrad import rules
from modgrad.bench.case import Case, kernels

M = 3
BALANCERS = {"ogm": modgrad.OGM(0.3), "mmpareto": modgrad.MMPareto()}


def rule_weights(name: str, device: str) -> Case:
    """Weights of a step from scores or a gram; the first provider is the balancer's own code."""
    rule = BALANCERS[name].rule
    assert rule is not None
    statistic = torch.rand(M, device=device)
    if rules.check(rule).reads == "gram":
        x = torch.randn(M, M + 1, 8, dtype=torch.float64, device=device)
        statistic = x @ x.transpose(1, 2)
    providers: dict[str, Callable[[], Any]] = {
        "in torch": lambda: rules.weights(rule, statistic)[0]
    }
    for backend in kernels(device):
        if backend != "reference":  # the first one
            providers[f"modgrad, {backend}"] = partial(_ours, statistic, rule, backend)

    def check() -> None:
        for provider in providers.values():
            torch.testing.assert_close(provider(), rules.weights(rule, statistic)[0])

    config = {"rule": name, "modalities": M, "dtype": str(statistic.dtype).removeprefix("torch.")}
    return Case("rule_weights", providers, check, config)


def _ours(statistic: torch.Tensor, rule: rules.Rule, backend: str) -> torch.Tensor:
    return modgrad.rule_weights(statistic, rule, backend=backend)[0]
