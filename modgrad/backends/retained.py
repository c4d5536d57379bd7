"""Lists of tensors that outlive a call: the native updates take each as one argument."""

import gc
import re
import weakref
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.__future__ import get_swap_module_params_on_conversion
from torch.utils._python_dispatch import _disable_current_modes

from modgrad.backends.protocol import SCHEMAS

# Which arguments of an update are lists that it writes; gradients are others in every step.
_RETAINED = {"modulated_sgd_": (0, 2), "modulated_adam_": (0, 2, 3, 4, 5)}

RETAINED_SCHEMAS = {
    f"{op}retained_": re.sub(r"Tensor\(\w!\)\[\]", "Tensor", SCHEMAS[op]) for op in _RETAINED
}
_LIBRARY = torch.library.Library("modgrad_native", "FRAGMENT")
_LIBRARY.define("retain(Tensor[] tensors) -> Tensor")
_LIBRARY.define("release(Tensor(a!) retained) -> ()")
for _op, _schema in RETAINED_SCHEMAS.items():
    _LIBRARY.define(_op + _schema)

with _disable_current_modes():  # whoever imports this in one
    _NONE = torch.empty(0, dtype=torch.int64, device="cpu")


_NO_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.Undefined)


class _Handles:
    """What an op takes in place of the tensors; they are let go with the last reference to it."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        with torch.no_grad(), torch._C.DisableTorchFunction(), _disable_current_modes():
            self.tensor: Tensor = torch.ops.modgrad_native.retain(tensors)
        weakref.finalize(self, _release, self.tensor).atexit = False


def _release(handles: Tensor) -> None:
    # whatever happens to run when the last reference goes: modes, a transform, an op being traced
    keys = torch._C._ForceDispatchKeyGuard(_NO_KEYS, _NO_KEYS)
    with keys, torch._C.DisableTorchFunction(), _disable_current_modes():
        torch.ops.modgrad_native.release(handles)


class _Slot:
    """Where a list has its handles, while it has them."""

    handles: _Handles | None = None
    was_handed_over = False


_SLOTS: weakref.WeakSet[_Slot] = weakref.WeakSet()


def _let_go(phase: str, info: dict[str, int], slots: Iterable[_Slot] = _SLOTS) -> None:
    """Before a full garbage collection, which sees no reference that C++ holds: no cycle has one.

    To retain 1,000 tensors again takes 60 us.
    """
    if phase == "start" and info["generation"] == 2:
        for slot in list(slots):
            slot.handles = None  # an op that runs has the handles too


gc.callbacks.append(_let_go)


class RetainedList(tuple[Tensor, ...]):
    """A list of tensors that is handed to the fused updates again and again.

    To hand over 1,000 tensors one by one takes about as long as to update them, if they are small.
    From the second time on the native updates take a ``RetainedList`` as one argument, where
    ``params`` and all states are such; everything else sees a tuple. The memory, shape, dtype and
    device of a tensor are read in every call. ``torch.utils.swap_tensors`` refuses tensors that are
    so retained: ``torch.__future__.set_swap_module_params_on_conversion``, set before the first
    update, keeps them from being so.
    """

    _slot: _Slot

    def __new__(cls, tensors: Iterable[Tensor] = ()) -> "RetainedList":
        self = super().__new__(cls, tensors)
        self._slot = _Slot()
        _SLOTS.add(self._slot)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (tuple(self),)  # handles are this process's, and this list's

    def handles(self) -> _Handles | None:
        """What to hand over; None where that must be the tensors themselves."""
        slot = self._slot
        if get_swap_module_params_on_conversion():
            slot.handles = None
            return None
        handles = slot.handles  # once: another thread may let go of it
        if handles is None and _are_plain(self):
            slot.handles = handles = _Handles(self)
        return handles


def _are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether nothing but memory stands behind them: others need torch on their way."""
    own = Tensor.__torch_dispatch__
    return (
        all(issubclass(k, Tensor) and k.__torch_dispatch__ == own for k in set(map(type, tensors)))
        and set(map(attrgetter("layout"), tensors)) <= {torch.strided}
        and not any(map(Tensor.is_neg, tensors))
    )


def handed_over(
    op: str, arguments: tuple[Any, ...]
) -> tuple[str, tuple[Any, ...], list[_Handles | None]]:
    """An update and its arguments, with handles where all lists but the gradients are retained.

    The third result is to be kept until the op is done.
    """
    lists = [arguments[i] for i in _RETAINED[op]]
    if torch.compiler.is_compiling() or not all([_is_due(tensors) for tensors in lists]):
        return op, arguments, []
    kept = [tensors.handles() if tensors else None for tensors in lists]
    handed = list(arguments)
    for i, tensors, handles in zip(_RETAINED[op], lists, kept, strict=True):
        if tensors and handles is None:
            return op, arguments, []
        handed[i] = _NONE if handles is None else handles.tensor
    return f"{op}retained_", tuple(handed), kept


def _is_due(tensors: Sequence[Tensor]) -> bool:
    """Whether it has been handed over before: others may be for one step only."""
    if not tensors:
        return True
    if not isinstance(tensors, RetainedList):
        return False
    slot = tensors._slot
    was, slot.was_handed_over = slot.was_handed_over, True
    return was
