"""Public ops: check the arguments once, choose a backend, call it.

Shape letters: M modalities or groups, P tensors, B batch, C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modgrad import checks, per_loss
from modgrad.backends import native, select
from modgrad.backends.layout import is_dense
from modgrad.calls import REFUSALS, check_refusal, is_native, seed_on, write_back


def dense_in_memory(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors; where one has gaps or overlaps in memory, a contiguous copy of it."""
    if all(map(Tensor.is_contiguous, tensors)):  # 0.04 us a tensor
        return tensors
    return [t if is_dense(t) else t.contiguous() for t in tensors]


@torch.no_grad()
def group_sq_norms(
    tensors: Sequence[Tensor], group: Sequence[int], num_groups: int, *, backend: str | None = None
) -> Tensor:
    """Sum of squares of all elements in each group of tensors.

    ``out[m] = sum over tensors t with group[t] = m of sum_i t[i]^2``, added in float64, so that no
    float32 input overflows or vanishes; the same bits on every run, for any number of threads.

    Args:
        tensors: P floating-point tensors of any shape, dtype and stride, on one device.
        group: P integers in [0, num_groups).
        num_groups: how many sums; one without tensors is 0.
        backend: its name; None takes the first that can run.

    Returns:
        float64 [num_groups].
    """
    if is_native(tensors, backend):
        try:
            return native.group_sq_norms(tensors, group, num_groups)
        except REFUSALS as error:
            check_refusal(error)
    device = checks.tensors("tensors", tensors)
    checks.group(group, len(tensors), num_groups)
    return select(device, backend).group_sq_norms(dense_in_memory(tensors), group, num_groups)


@torch.no_grad()
def modulate_(
    grads: Sequence[Tensor],
    group: Sequence[int],
    weights: Tensor,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    *,
    backend: str | None = None,
) -> None:
    """Scale gradients in place by their group's weight and, with ``noise``, add GE noise.

    ``g <- w g + a std(g) z``, with w = weights[group], a = noise[group], z standard normal, and
    std(g) the standard deviation (n - 1) over the entries of the unscaled gradient tensor, 0 for a
    single entry. Computed in float32 (float64 for float64) and rounded once.

    Args:
        grads: P floating-point tensors on one device, changed in place.
        group: P integers in [0, M).
        weights: [M].
        noise: [M], or None for none. A group with noise 0 is scaled only.
        seed: an integer, or an int64 tensor of one element that is read on the device; needed with
            ``noise``. The same seed gives the same noise on every rank and, up to the rounding of
            log and cos, in every backend.
        backend: its name; None takes the first that can run.

    Source: Peng et al., Balanced Multimodal Learning via On-the-fly Gradient Modulation, CVPR 2022,
    eq. 10 (weights) and section 3.3 (noise).
    """
    if not isinstance(weights, Tensor):
        raise TypeError(f"`weights` is {type(weights).__name__}, allowed: a tensor")
    device = weights.device
    checks.vector("weights", weights, None, device)
    weights = weights.detach().float().contiguous()
    if noise is not None:
        checks.vector("noise", noise, len(weights), device)
        seed = seed_on(device, seed)
        noise = noise.detach().float().contiguous()
    elif seed is not None:
        raise ValueError("`seed` is given without `noise`")
    dense: Sequence[Tensor] | None = None
    if is_native(grads, backend):
        try:  # around the op alone: what follows must not make it run twice
            native.modulate_(grads, group, weights, noise, seed)
            dense = grads
        except REFUSALS as error:
            check_refusal(error)
    if dense is None:
        if checks.tensors("grads", grads) != device:
            raise ValueError(f"`weights` is on {device}, allowed: {grads[0].device}")
        checks.group(group, len(grads), len(weights))
        dense = dense_in_memory(grads)
        select(device, backend).modulate_(dense, group, weights, noise, seed)
    write_back(grads, dense)


@torch.no_grad()
def modality_scores(
    logits: Tensor | Sequence[Tensor], targets: Tensor, *, backend: str | None = None
) -> Tensor:
    """Mean probability of the true class from each modality alone: its score.

    ``out[m] = 1/B sum_b softmax(logits[m, b])[targets[b]]``, in one pass over the logits, in
    float32 (float64 for float64).

    Args:
        logits: [M, B, C], or M tensors [B, C_m].
        targets: B integers in [0, C). On the CPU a target outside is an error; on a GPU, where that
            check would need a host read, it makes the score NaN.
        backend: its name; None takes the first that can run.

    Returns:
        float32 [M].
    """
    if isinstance(logits, Tensor):
        if logits.dim() != 3:
            raise ValueError(f"`logits` has shape {list(logits.shape)}, allowed: [M, B, C]")
        logits = logits.unbind(0)
    checks.logits_and_targets(logits, targets)
    return scores(logits, targets, backend=backend)


def scores(logits: Sequence[Tensor], targets: Tensor, *, backend: str | None = None) -> Tensor:
    """``modality_scores`` of M tensors that were checked."""
    return select(targets.device, backend).modality_scores(
        [x.detach().contiguous() for x in logits], targets.detach().long().contiguous()
    )


def scaled(grads: Sequence[Tensor], weights: Tensor, *, backend: str | None = None) -> list[Tensor]:
    """``weights[m] * grads[m]`` as new tensors: the backward of ``scale_backward``."""
    if torch.compiler.is_compiling():  # gradients may come with other strides than the traced ones
        dense: Sequence[Tensor] = [grad.contiguous() for grad in grads]
    else:
        dense = dense_in_memory(grads)
    return select(weights.device, backend).scale_backward(
        dense, weights.detach().float().contiguous()
    )


@torch.no_grad()
def group_gram(
    grads_per_loss: Sequence[Sequence[Tensor | None]],
    group: Sequence[int],
    num_groups: int,
    *,
    backend: str | None = None,
) -> Tensor:
    """Inner products of the gradients of K losses, in each group of parameters.

    ``out[m, k, j] = sum over parameters p with group[p] = m of <g_k[p], g_j[p]>``, added in
    float64; a missing gradient counts as 0. Symmetric to the bit; ``group_sq_norms`` for K = 1.

    Args:
        grads_per_loss: K lists of P floating-point tensors, or None where a loss does not reach a
            parameter; the K gradients of a parameter have one shape and dtype.
        group: P integers in [0, num_groups).
        num_groups: M.
        backend: its name; None takes the first that can run.

    Returns:
        float64 [M, K, K].
    """
    K = len(grads_per_loss)
    if per_loss.can_be_flat(grads_per_loss, len(group), backend):
        try:
            return native.group_gram(*per_loss.flat(grads_per_loss), group, num_groups, K)
        except REFUSALS as error:
            check_refusal(error)
    lists = per_loss.checked(grads_per_loss, [None] * len(grads_per_loss[0] if K else ()))
    checks.group(group, len(grads_per_loss[0]), num_groups)
    chosen = select(lists.grads[0].device, backend)
    return chosen.group_gram(*lists, group, num_groups, K)


@torch.no_grad()
def combine_(
    out: Sequence[Tensor],
    grads_per_loss: Sequence[Sequence[Tensor | None]],
    group: Sequence[int],
    weights: Tensor,
    *,
    backend: str | None = None,
) -> None:
    """The weighted sum of the gradients of K losses, written to ``out`` in one pass.

    ``out[p] <- sum_k weights[group[p], k] g_k[p]``, added in the order of losses in float32
    (float64 for float64) and rounded once; 0 where no loss reaches a parameter.

    Args:
        out: P floating-point tensors, overwritten; none of them may be one of the gradients.
        grads_per_loss: K lists of P tensors like those of ``out``, or None.
        group: P integers in [0, M).
        weights: [M, K].
        backend: its name; None takes the first that can run.
    """
    device, K = checks.tensors("out", out), len(grads_per_loss)
    if weights.dim() != 2 or weights.shape[1] != K or weights.device != device:
        found = f"{list(weights.shape)} on {weights.device}"
        raise ValueError(f"`weights` is {found}, allowed: [M, {K}] on {device}")
    weights = weights.detach().float().contiguous()
    dense: Sequence[Tensor] | None = None
    if per_loss.can_be_flat(grads_per_loss, len(out), backend):
        try:  # around the op alone: what follows must not make it run twice
            native.combine_(out, *per_loss.flat(grads_per_loss), group, weights)
            dense = out
        except REFUSALS as error:
            check_refusal(error)
    if dense is None:
        lists = per_loss.checked(grads_per_loss, out)
        checks.group(group, len(out), len(weights))
        if len(grads_per_loss[0]) != len(out):
            raise ValueError(f"`out` has {len(out)} tensors, allowed: {len(grads_per_loss[0])}")
        dense = dense_in_memory(out)
        select(device, backend).combine_(dense, *lists, group, weights)
    write_back(out, dense)
