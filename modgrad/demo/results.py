"""What the demo measures, and its file."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from modgrad.demo.methods import BALANCED
from modgrad.demo.options import Options


@dataclass(frozen=True)
class Epoch:
    loss: float
    """Mean over the training batches."""
    accuracy: Mapping[str, float]
    """On the test split: of the joint prediction, and of each modality's branch alone."""
    weights: Mapping[str, Any] | None
    """By modality, and by loss where there are several; mean over the steps."""


@dataclass(frozen=True)
class Run:
    method: str
    seed: int
    epochs: tuple[Epoch, ...]


@dataclass(frozen=True)
class Timing:
    """Of one training step, measured side by side with plain training."""

    median_ms: float
    overhead: float
    """Median over the rounds of this step's time over plain training's in that round, less 1."""
    rounds: int


@dataclass(frozen=True)
class Spread:
    mean: float
    std: float | None = None
    """Over seeds; None of a single one."""


@dataclass(frozen=True)
class Results:
    options: Options
    backend: str
    device: str
    versions: Mapping[str, str]
    runs: tuple[Run, ...]
    timings: Mapping[str, Timing]
    seconds: float

    def methods(self) -> list[str]:
        return list(dict.fromkeys(run.method for run in self.runs))

    def accuracy(self) -> dict[str, dict[str, Spread]]:
        """At the end of training, over seeds: by method and output."""
        return {
            method: {
                output: spread(curve[-1] for curve in curves)
                for output, curves in self.curves(method).items()
            }
            for method in self.methods()
        }

    def curves(self, method: str) -> dict[str, list[list[float]]]:
        """The accuracy of each output, by seed and epoch."""
        runs = [run for run in self.runs if run.method == method]
        outputs = runs[0].epochs[0].accuracy
        return {o: [[epoch.accuracy[o] for epoch in run.epochs] for run in runs] for o in outputs}

    def save(self, path: Path) -> None:
        content = asdict(self)
        for epoch in (epoch for run in content["runs"] for epoch in run["epochs"]):
            if not math.isfinite(epoch["loss"]):
                epoch["loss"] = None  # JSON knows no NaN
        content["balancers"] = {
            name: repr(BALANCED[name].balancer) for name in self.options.balancers
        }
        content["accuracy"] = {
            method: {output: asdict(value) for output, value in row.items()}
            for method, row in self.accuracy().items()
        }
        path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


def spread(values: Iterable[float]) -> Spread:
    seeds = list(values)
    return Spread(mean(seeds), stdev(seeds) if len(seeds) > 1 else None)
