"""What balancing costs: the time of a step beside that of a plain one."""

import random
import time
from collections.abc import Callable
from statistics import median

import torch

from modgrad.demo.methods import METHODS, PLAIN
from modgrad.demo.results import Timing
from modgrad.demo.training import Setting, build

WARM_UP = 10
ROUNDS = 100


def measure(setting: Setting, report: Callable[[], None]) -> dict[str, Timing]:
    """Time a step of every method in each round, all on one batch, in random order.

    What disturbs the machine then disturbs the methods alike; ``report`` is called every round.
    """
    methods = [PLAIN, *setting.options.balancers]
    networks = {method: build(method, 0, setting) for method in methods}
    generator, order = torch.Generator().manual_seed(0), random.Random(0)
    times: dict[str, list[float]] = {method: [] for method in methods}
    size = setting.options.batch_size
    for number in range(WARM_UP + ROUNDS):
        inputs, targets = next(setting.train.batches(size, generator))
        for method in order.sample(methods, len(methods)):
            _wait(setting.device)
            start = time.perf_counter()
            METHODS[method].step(*networks[method], inputs, targets)
            _wait(setting.device)
            if number >= WARM_UP:
                times[method].append(time.perf_counter() - start)
        report()
    return {
        method: Timing(
            1e3 * median(seconds),
            median(a / b for a, b in zip(seconds, times[PLAIN], strict=True)) - 1,
            ROUNDS,
        )
        for method, seconds in times.items()
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
