"""What has to be equal on all ranks, and the part of a sharded tensor that is here."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(total: Tensor, count: int, group: dist.ProcessGroup | None) -> Tensor:
    """``sum of totals / sum of counts`` over the ranks; total [M], one collective of M + 1 numbers.

    Gradients are equal on all ranks after DDP's reduction. Weights from each rank's own batch would
    differ, and the replicas with them, silently.
    """
    if is_alone(group):
        return total / count
    packed = torch.cat([total, total.new_full((1,), count)])
    dist.all_reduce(packed, group=group)
    return packed[:-1] / packed[-1]


def mean_of_means(mean: Tensor, count: int, group: dist.ProcessGroup | None) -> Tensor:
    """The same from the mean of each rank, which is the answer where there is one rank."""
    return mean if is_alone(group) else mean_over_ranks(mean * count, count, group)


def is_alone(group: dist.ProcessGroup | None) -> bool:
    """Whether there is one rank, or torch.distributed is not in use."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, as FSDP2 makes of parameters and gradients."""
    return hasattr(tensor, "to_local")


def local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The local shards of DTensors, and other tensors as they are: scaling needs no more."""
    return [t.to_local() if is_sharded(t) else t for t in tensors]  # type: ignore[attr-defined]
