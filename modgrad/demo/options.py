"""What the demo is asked to do."""

from dataclasses import dataclass
from pathlib import Path

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
