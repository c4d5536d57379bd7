"""Plain PyTorch: the definition of every op. The other backends are compared with it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from modgrad.backends.elements import wide, with_noise
from modgrad.backends.fake import register
from modgrad.backends.layout import flat
from modgrad.backends.reference_updates import modulated_adam_ as modulated_adam_
from modgrad.backends.reference_updates import modulated_sgd_ as modulated_sgd_
from modgrad.rules import Rule, weights


def unusable(device: torch.device) -> str | None:
    return None


def group_sq_norms(tensors: Sequence[Tensor], group: Sequence[int], num_groups: int) -> Tensor:
    sums: list[list[Tensor]] = [[] for _ in range(num_groups)]
    for tensor, g in zip(tensors, group, strict=True):
        x = flat(tensor).double()
        sums[g].append(torch.dot(x, x))
    zero = tensors[0].new_zeros((), dtype=torch.float64)
    return torch.stack([torch.stack(s).sum() if s else zero for s in sums])


def modulate_(
    grads: Sequence[Tensor],
    group: Sequence[int],
    weights: Tensor,
    noise: Tensor | None = None,
    seed: Tensor | None = None,
) -> None:
    for index, (grad, g) in enumerate(zip(grads, group, strict=True)):
        x = flat(grad).to(wide(grad.dtype))
        scaled = x * weights[g].to(x.dtype)
        if noise is not None and seed is not None:
            scaled = with_noise(scaled, x, noise[g], seed, index)
        flat(grad).copy_(scaled)


def modality_scores(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    index, rows = targets.long()[:, None], []
    for x in logits:
        C = x.shape[1]
        p = x.to(wide(x.dtype)).softmax(dim=1).gather(1, index.clamp(0, C - 1))
        rows.append(torch.where((index >= 0) & (index < C), p, math.nan))
    return torch.stack([p.double().mean().float() for p in rows])


def scale_backward(grads: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    return [
        (grad.to(wide(grad.dtype)) * weight.to(wide(grad.dtype))).to(grad.dtype)
        for grad, weight in zip(grads, weights.unbind(), strict=True)
    ]


def group_gram(
    grads: Sequence[Tensor],
    tensor: Sequence[int],
    loss: Sequence[int],
    group: Sequence[int],
    num_groups: int,
    num_losses: int,
) -> Tensor:
    by_tensor: dict[int, list[tuple[int, Tensor]]] = {}
    for grad, t, k in zip(grads, tensor, loss, strict=True):
        by_tensor.setdefault(t, []).append((k, flat(grad).double()))
    gram = grads[0].new_zeros(num_groups, num_losses, num_losses, dtype=torch.float64)
    for t, present in by_tensor.items():
        for k, x in present:
            for j, y in present:
                if k <= j:
                    gram[group[t], k, j] += torch.dot(x, y)
    return gram.triu() + gram.triu(1).transpose(1, 2)


def combine_(
    out: Sequence[Tensor],
    grads: Sequence[Tensor],
    tensor: Sequence[int],
    loss: Sequence[int],
    group: Sequence[int],
    weights: Tensor,
) -> None:
    sums = [torch.zeros_like(flat(x), dtype=wide(x.dtype)) for x in out]
    order = sorted(range(len(grads)), key=lambda i: (tensor[i], loss[i]))
    for i in order:
        sum_, weight = sums[tensor[i]], weights[group[tensor[i]], loss[i]]
        sum_ += flat(grads[i]).to(sum_.dtype) * weight.to(sum_.dtype)
    for x, sum_ in zip(out, sums, strict=True):
        flat(x).copy_(sum_)


def rule_weights(
    statistic: Tensor,
    rule: str,
    parameters: Sequence[float],
    losses: Tensor | None,
    states: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    found, new = weights(Rule(rule, tuple(parameters)), statistic, losses, tuple(states))
    return found.clone(), torch.stack(new) if new else found.new_empty(0, found.shape[1])


def balance_(
    out: Sequence[Tensor],
    grads: Sequence[Tensor],
    tensor: Sequence[int],
    loss: Sequence[int],
    group: Sequence[int],
    num_groups: int,
    num_losses: int,
    rule: str,
    parameters: Sequence[float],
    losses: Tensor | None,
    states: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    if grads:
        gram = group_gram(grads, tensor, loss, group, num_groups, num_losses)
    else:
        gram = group_sq_norms(out, group, num_groups)[:, None, None]
    found, new = rule_weights(gram, rule, parameters, losses, states)
    if grads:
        combine_(out, grads, tensor, loss, group, found)
    else:
        modulate_(out, group, found[:, 0])
    return gram, found, new


def _class_mass(
    num_classes: int,
    targets: Tensor,
    class_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The targets t and the mass q of the classes, [B, C], and which samples count, [B]."""
    if targets.is_floating_point():
        kept = torch.ones_like(targets[:, 0], dtype=torch.bool)
        t = targets.double()
    else:
        kept = targets != ignore_index
        t = (targets[:, None] == torch.arange(num_classes, device=targets.device)).double()
        outside = kept & ((targets < 0) | (targets >= num_classes))
        t = torch.where(outside[:, None], torch.nan, t)
    q = (1 - label_smoothing) * t + label_smoothing / num_classes
    if class_weights is not None:
        q = q * class_weights.double()
    return t, torch.where(kept[:, None], q, 0.0), kept


def modality_cross_entropy(
    logits: Sequence[Tensor],
    targets: Tensor,
    class_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    rule: str | None = None,
    parameters: Sequence[float] | None = None,
    num_joint: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    losses, scores, lses, masses = [], [], [], []
    options = targets, class_weights, ignore_index, label_smoothing
    for x in map(Tensor.double, logits):
        t, q, kept = _class_mass(x.shape[1], *options)
        lse = x.logsumexp(1)
        lse = torch.where(lse.isinf(), torch.nan, lse)  # as torch: nothing is left, or inf - inf
        rows = q.sum(1) * lse - torch.where(q == 0, 0.0, q * x).sum(1)
        p = (t * (x - lse[:, None]).exp()).sum(1)
        total = kept.sum()
        if class_weights is not None and not targets.is_floating_point():
            total = torch.where(kept, (t * class_weights.double()).sum(1), 0.0).sum()
        losses.append(torch.where(kept, rows, 0.0).sum() / total)
        scores.append(torch.where(kept, p, 0.0).sum() / kept.sum())
        lses.append(torch.where(kept, lse, 0.0))
        masses.append(torch.cat([q.sum(1), total[None]]))
    exact = torch.stack(losses)
    wide = any(x.dtype == torch.float64 for x in logits)
    rounded = torch.stack(scores).float()
    found = rounded.new_empty(0)
    if rule is not None:
        own, _ = weights(Rule(rule, tuple(parameters or ())), rounded[num_joint:])
        found = torch.cat([rounded.new_ones(num_joint), own[:, 0]])
    return (
        # not .to(float64): torch.compile of 2.11 loses the gradient of what is that already
        exact if wide else exact.float(),
        rounded,
        torch.stack(lses),
        masses[0],
        found,
    )


def modality_cross_entropy_backward(
    logits: Sequence[Tensor],
    loss: Sequence[int],
    targets: Tensor,
    class_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    lse: Tensor,
    mass: Tensor,
    grad_losses: Tensor,
    weights: Tensor | None,
) -> list[Tensor]:
    coefficients = grad_losses.double() / mass[-1]
    if weights is not None:
        coefficients = coefficients * weights.double()
    grads = []
    for x, m in zip(logits, loss, strict=True):
        _, q, kept = _class_mass(x.shape[1], targets, class_weights, ignore_index, label_smoothing)
        p = (x.double() - lse[m, :, None]).exp()
        grad = coefficients[m] * (mass[:-1, None] * p - q)
        grads.append(torch.where(kept[:, None], grad, 0.0).to(x.dtype))
    return grads


_OPS = (
    group_sq_norms,
    modulate_,
    modality_scores,
    scale_backward,
    group_gram,
    combine_,
    rule_weights,
    balance_,
    modality_cross_entropy,
    modality_cross_entropy_backward,
    modulated_sgd_,
    modulated_adam_,
)
register("reference", {op.__name__: op for op in _OPS})
