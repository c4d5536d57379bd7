"""What a call costs beside time: ops, kernels, host reads, memory."""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Ops that hand a value to the host: on a GPU each waits for the device.
_READS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero"}
_COPIES = {"aten::_to_copy", "aten::copy_"}


class Cost(NamedTuple):
    """Of one call; None where it was not counted."""

    dispatched_ops: int | None = None
    """Ops that torch dispatches below autograd, without views."""
    host_reads: int | None = None
    """Values and tensors that ops hand from the device under test to the host."""
    device_kernels: int | None = None
    """What a GPU runs: kernels, copies, fills."""
    peak_bytes: int | None = None
    """Of new tensors alive at once; on CUDA, by the allocator."""


class _Counter(TorchDispatchMode):
    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.ops = self.reads = self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        before = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for tensor in before:
            self._known.add(tensor.untyped_storage()._cdata)
        out = func(*args, **(kwargs or {}))
        self.ops += not func.is_view
        name = func._schema.name
        if name in _READS:
            self.reads += any(x.device.type == self.device for x in before)
        elif name in _COPIES and self.device != "cpu":
            source = before[-1].device.type
            self.reads += source == self.device and out.device.type == "cpu"
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def cost(provider: Callable[[], object], device: str, *, dispatched: bool = True) -> Cost:
    """Count one call. A compiled function would run uncompiled here: ``dispatched`` leaves it."""
    counter = _Counter(device)
    if dispatched:
        with counter:
            provider()
    ops, reads = (counter.ops, counter.reads) if dispatched else (None, None)
    if device != "cuda":
        return Cost(ops, reads, None, counter.peak if dispatched else None)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    provider()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as recorded:
        provider()
        torch.cuda.synchronize()
    kernels = sum(e.device_type == DeviceType.CUDA for e in recorded.events() or ())
    return Cost(ops, reads, kernels, peak)
