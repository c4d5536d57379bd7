"""What the demo is asked to do, and the balancers it knows by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modgrad.balancers import OGM, FixedWeights
from modgrad.balancers.base import Balancer

# Frozen, so one object serves any number of runs. alpha is the default, the authors' for CREMA-D.
BALANCERS: Mapping[str, Balancer[Any]] = {
    "ogm": OGM(alpha=0.8, noise=0.0),
    "ogm-ge": OGM(alpha=0.8, noise=1.0),
    "fixed": FixedWeights({"audio": 2.0, "visual": 0.5}),
}
DEVICES = ("auto", "cpu", "cuda")
AUTO = "auto"


@dataclass(frozen=True)
class Options:
    """See ``modgrad demo --help``."""

    balancers: tuple[str, ...] = ("ogm", "ogm-ge")
    epochs: int = 30
    seeds: int = 3
    batch_size: int = 64
    lr: float = 0.02
    image_noise: float = 0.3
    backend: str = AUTO
    device: str = AUTO
    threads: int = 1
    output: Path = Path("demo_results")
