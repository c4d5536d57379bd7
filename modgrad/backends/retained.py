"""Lists of tensors that outlive a call: the native updates take each as one argument."""

import gc
import re
import weakref
from collections.abc import Iterable
from functools import cached_property
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
_NONE = torch.empty(0, dtype=torch.int64)


class _Handles:
    """What an op takes in place of the tensors."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        with torch.no_grad():
            self.tensor: Tensor = torch.ops.modgrad_native.retain(tensors)
        weakref.finalize(self, _release, self.tensor).atexit = False


def _release(handles: Tensor) -> None:
    with _disable_current_modes():  # whatever happens to run when the last reference goes
        torch.ops.modgrad_native.release(handles)


def _is_plain(t: Tensor) -> bool:
    """Whether nothing but memory stands behind the tensor.

    Others need torch on their way; and Python's collector does not see the reference that is
    retained, so that no cycle may pass through it: by hooks, attributes, or a graph.
    """
    is_memory = (
        type(t).__torch_dispatch__ == Tensor.__torch_dispatch__
        and t.layout == torch.strided
        and not t.is_neg()
    )
    hooks = t._backward_hooks, t._post_accumulate_grad_hooks
    is_leaf = t.grad_fn is None and not any(hooks)
    return is_memory and is_leaf and not any(map(gc.is_tracked, t.__dict__.values()))


class RetainedList(tuple[Tensor, ...]):
    """A list of tensors that is handed to the fused updates again and again.

    To hand over 1,000 tensors one by one takes about as long as to update them, if they are small.
    The native updates take a ``RetainedList`` as one argument, where ``params`` and all states are
    such; everything else sees a tuple. What a tensor is, its memory and its shape, is read in every
    call. ``torch.utils.swap_tensors`` refuses tensors that are so retained: where
    ``torch.__future__.set_swap_module_params_on_conversion`` asks for it, none are.
    """

    _handles: _Handles | None = None

    def __new__(cls, tensors: Iterable[Tensor] = ()) -> "RetainedList":
        return super().__new__(cls, tensors)

    @cached_property
    def _is_plain(self) -> bool:
        return all(map(_is_plain, self))

    @property
    def handles(self) -> Tensor | None:
        """Their handles, int64 on the host; None where they must be handed over one by one."""
        if not self._is_plain or get_swap_module_params_on_conversion():
            self._handles = None
            return None
        if self._handles is None:
            self._handles = _Handles(self)
        return self._handles.tensor

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (tuple(self),)  # handles are this process's, and this list's


def handed_over(op: str, arguments: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    """An update and its arguments, with handles where all lists but the gradients are retained."""
    handed = list(arguments)
    for i in _RETAINED[op]:
        tensors = arguments[i]
        handed[i] = tensors.handles if isinstance(tensors, RetainedList) else None
        if not tensors:
            handed[i] = _NONE
        if handed[i] is None:
            return op, arguments
    return f"{op}retained_", tuple(handed)
