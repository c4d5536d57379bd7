"""Interleaved timing: what disturbs the machine disturbs all providers alike."""

import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median, quantiles
from typing import NamedTuple

import torch
from torch import Tensor

WARM_UP = 1  # rounds; what is lazy has happened in the correctness gate before
_FEWEST = 3  # rounds of such a one
_CYCLES_PER_SECOND = 2e9  # of a GPU's clock, from above


class Measured(NamedTuple):
    """One provider's times in ms, and its pairwise ratios to the first provider."""

    median: float
    q20: float
    q80: float
    ratio: float
    ratio_q20: float
    ratio_q80: float
    rounds: int
    host: float | None = None
    """Until the call returns; on CUDA, where the device may still be busy then."""
    device: float | None = None
    """Between two CUDA events, with the queue filled before: free of the host's time."""


def interleaved(
    providers: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    least: int = 5,
    most: int = 1000,
    device: str = "cpu",
    prepare: Callable[[], object] = lambda: None,
    progress: Callable[[float], object] = lambda done: None,
) -> dict[str, Measured]:
    """Every provider once a round, in random order, after ``prepare``, each waited for.

    Rounds are made for ``seconds``, at least ``least`` and at most ``most`` of them; a slow
    provider is in every n-th only, and in three. ``progress`` is told the share that is done.
    """
    order, names = random.Random(0), list(providers)
    total: dict[str, list[float]] = {name: [] for name in names}
    host: dict[str, list[float]] = {name: [] for name in names}
    busy: dict[str, list[float]] = {name: [] for name in names}
    cuda = device == "cuda"
    wait: Callable[[], object] = torch.cuda.synchronize if cuda else _nothing
    every = dict.fromkeys(names, 1)
    began, rounds = time.perf_counter(), -WARM_UP
    while rounds < max(least, _FEWEST * max(every.values())) or (
        rounds < most and time.perf_counter() - began < seconds
    ):
        due = [name for name in names if rounds % every[name] == 0]
        for name in order.sample(due, len(due)):
            prepare()
            wait()
            start = time.perf_counter()
            providers[name]()
            returned = time.perf_counter()
            wait()
            end = time.perf_counter()
            total[name].append(end - start)
            host[name].append(returned - start)
            if cuda:
                busy[name].append(_on_device(providers[name], returned - start, prepare))
        rounds += 1
        if rounds == 0:
            quick = total[names[0]][-1]
            every = {name: _rounds_between(total[name][-1] / quick) for name in names}
            for times in (*total.values(), *host.values(), *busy.values()):
                times.clear()
        progress(min(1.0, (time.perf_counter() - began) / max(seconds, 1e-9)))
    first = total[names[0]]
    out = {}
    for name in names:
        low, *_, high = quantiles(total[name], n=5)
        ratios = [a / b for a, b in zip(total[name], first[:: every[name]], strict=True)]
        ratio_low, *_, ratio_high = quantiles(ratios, n=5)
        out[name] = Measured(
            *(1e3 * median(total[name]), 1e3 * low, 1e3 * high),
            *(median(ratios), ratio_low, ratio_high),
            rounds=len(ratios),
            host=1e3 * median(host[name]) if cuda else None,
            device=1e3 * median(busy[name]) if cuda else None,
        )
    return out


def _nothing() -> None: ...


def _rounds_between(ratio: float) -> int:
    """In which n-th rounds a provider is that takes so many times the first one's time.

    A slow one sits out the others, so that all have about the same time, and most more rounds.
    """
    return min(8, max(1, int(ratio)))


def _on_device(
    provider: Callable[[], object], host_seconds: float, prepare: Callable[[], object]
) -> float:
    """Seconds between events, while a sleeping kernel ahead lets the host come first."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    prepare()
    torch.cuda._sleep(int(2 * host_seconds * _CYCLES_PER_SECOND))
    start.record()
    provider()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


@contextmanager
def waits_are_errors() -> Iterator[None]:
    """On CUDA, what makes the host wait for the device raises RuntimeError."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def warm_up(provider: Callable[[], object]) -> None:
    """Run once on a stream of its own, as has to come before a capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        provider()
    torch.cuda.current_stream().wait_stream(stream)


def replayed(provider: Callable[[], object], rounds: int = 20) -> float | None:
    """Median ms of a CUDA graph's replay; None where the provider cannot be captured."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with waits_are_errors():  # a capture that ends in a wait leaves torch's streams in disorder
            warm_up(provider)
        with torch.cuda.graph(graph):
            provider()
    except RuntimeError:
        torch.cuda.set_stream(stream)
        torch.cuda.synchronize()
        return None
    times = interleaved({"replay": graph.replay}, 1.0, most=rounds, device="cuda")["replay"]
    return times.device


class Flush:
    """Reads a buffer larger than the last cache, which empties it of everything else."""

    def __init__(self, device: str, size: int) -> None:
        self._buffer: Tensor = torch.ones(2 * size // 4, device=device)

    def __call__(self) -> None:
        self._buffer.sum()
