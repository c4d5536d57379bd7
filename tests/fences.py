"""Tensors at any offset from a boundary, with what shows a read or a write beside them."""

import torch

# What stands around every tensor. A read of it shows in the result, a write to it in fences_stand.
FENCE = 8192


def fenced(values, offset, whole=None):
    """A copy of ``values`` [n] in a larger tensor, ``offset`` elements past a 16-byte boundary."""
    if whole is None:
        whole = torch.empty(len(values) + 24, dtype=values.dtype)
    assert whole.data_ptr() % 16 == 0
    whole.fill_(FENCE)
    view = whole[8 + offset : 8 + offset + len(values)]
    view.copy_(values)
    return view


def place(tensor):
    """Where a view begins in the tensor that it is of."""
    return tensor.storage_offset() - tensor._base.storage_offset()


def fences_stand(tensors):
    for tensor in tensors:
        whole = tensor._base.clone()
        whole[place(tensor) :][: tensor.numel()] = FENCE
        if not (whole == FENCE).all():
            return False
    return True


def copies(tensors):
    """In one allocation, near to one another as on a GPU: the C library has others far apart."""
    sizes = [-(t._base.nbytes // -16) * 16 for t in tensors]
    memory, begin, out = torch.UntypedStorage(sum(sizes)), 0, []
    for t, size in zip(tensors, sizes, strict=True):
        whole = torch.empty(0, dtype=t.dtype)
        whole.set_(memory, begin // t.element_size(), t._base.shape, (1,))
        out.append(fenced(t, place(t) - 8, whole))
        begin += size
    return out
