"""Tensors at any offset from a boundary, with what shows a read or a write beside them."""

import torch

# What stands around every tensor. A read of it shows in the result, a write to it in fences_stand.
FENCE = 8192


def fenced(values, offset):
    """A copy of ``values`` [n] in a larger tensor, ``offset`` elements past a 16-byte boundary."""
    whole = torch.full((len(values) + 24,), FENCE, dtype=values.dtype)
    assert whole.data_ptr() % 16 == 0
    view = whole[8 + offset : 8 + offset + len(values)]
    view.copy_(values)
    return view


def fences_stand(tensors):
    for tensor in tensors:
        whole = tensor._base.clone()
        whole[tensor.storage_offset() :][: tensor.numel()] = FENCE
        if not (whole == FENCE).all():
            return False
    return True


def copies(tensors):
    return [fenced(t, t.storage_offset() - 8) for t in tensors]
