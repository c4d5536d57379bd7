"""What diagnostics over a data loader share: targets, eval mode, sums over samples and ranks.

Shape letters: M modalities, B batch, C classes, R rows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from modgrad.diagnostics.extras import track
from modgrad.distributed import mean_over_ranks
from modgrad.responses import eval_mode


def last_of(batch: Any) -> Tensor:
    """The targets of a batch ``(inputs, …, targets)``."""
    if not isinstance(batch, Sequence) or not isinstance(batch[-1], Tensor):
        raise TypeError(
            f"a batch is {type(batch).__name__}, allowed: a tuple that ends with the targets, or"
            " `targets=` from a batch to them"
        )
    return batch[-1]


@contextmanager
def evaluating(model: nn.Module | None) -> Iterator[None]:
    """Without gradients, and the model in eval mode; None leaves modes to the caller."""
    with torch.no_grad(), nullcontext() if model is None else eval_mode(model):
        yield


def batches(loader: Iterable[Any], text: str, progress: bool) -> Iterator[Any]:
    """The batches of a loader, at least one."""
    empty = True
    for batch in track(loader, text, progress):
        empty = False
        yield batch
    if empty:
        raise ValueError(f"{text}: the loader has no batches, allowed: at least one")


def several_names(modalities: Iterable[str]) -> tuple[str, ...]:
    """The names of two modalities or more."""
    names = tuple(modalities)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"`modalities` is {list(names)}, allowed: at least 2 different names")
    return names


def checked_logits(logits: Any, callable_name: str) -> Tensor:
    """float64 [B, C]."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.dim() != 2:
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"`{callable_name}` returns {found}, allowed: floating-point [B, C]")
    return logits.double()


def targets_of(batch: Any, targets: Callable[[Any], Tensor], logits: Tensor) -> Tensor:
    """int64 [B], where the logits are."""
    y = targets(batch)
    if y.shape != logits.shape[:1] or y.is_floating_point():
        found = f"{y.dtype} {list(y.shape)}"
        raise ValueError(f"`targets` gives {found}, allowed: integers [{len(logits)}]")
    return y.to(logits.device, torch.int64)


class Tally:
    """Sums over samples that stay on the device; at the end, means over all ranks' samples."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._count = 0
        self._classes = 0

    def add(self, rows: Sequence[Tensor], targets: Tensor, classes: int) -> None:
        """Numbers of each sample, each [R, B], of a batch with these targets."""
        outside = (targets < 0) | (targets >= classes)
        sums = torch.cat([*(row.double() for row in rows), outside.double()[None]]).sum(1)
        self._total = sums if self._total is None else self._total + sums
        self._count, self._classes = self._count + len(targets), classes

    def means(self, sizes: Sequence[int], group: ProcessGroup | None) -> tuple[list[Tensor], int]:
        """The means, split into blocks of these sizes, float64 on the host; how many samples.

        Raises:
            ValueError: no samples; targets out of range; NaN or infinity.
        """
        if self._total is None or self._count == 0:
            raise ValueError("the loader has no samples, allowed: at least one")
        means = mean_over_ranks(self._total, self._count, group)
        ranks = mean_over_ranks(means.new_full((1,), self._count), 1, group)
        values = torch.cat([means, ranks]).cpu()
        if values[-2] > 0:
            raise ValueError(f"`targets` are out of range, allowed: 0 to {self._classes - 1}")
        if not values.isfinite().all():
            raise ValueError("the logits hold NaN or infinity, allowed: finite numbers")
        samples = round(float(values[-1]) * _world(group))
        return list(values[:-2].split(list(sizes))), samples


def _world(group: ProcessGroup | None) -> int:
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
