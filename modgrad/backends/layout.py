"""Dense tensors as flat memory, whatever the order of their dimensions (channels-last included)."""

from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one block of memory without gaps or overlaps."""
    if tensor.is_contiguous():
        return True
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).is_contiguous()


def flat(tensor: Tensor) -> Tensor:
    """A dense tensor as a view of shape [N], in the order of memory."""
    return tensor.as_strided((tensor.numel(),), (1,))
