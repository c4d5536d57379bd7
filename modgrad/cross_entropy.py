"""The op of modality_cross_entropy under autograd: one op forward, one for all gradients."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modgrad import checks
from modgrad.backends import native, reference, select
from modgrad.backends.protocol import Backend
from modgrad.rules import Rule

Logits = Tensor | Sequence[Tensor] | Mapping[Any, Tensor]


class Options(NamedTuple):
    """What is no tensor that the op differentiates."""

    ignore_index: int
    label_smoothing: float
    rule: Rule | None = None
    num_joint: int = 0
    applied: bool = True  # whether the rule's weights act on the gradients of the logits


class _CrossEntropy(torch.autograd.Function):
    """Losses, scores and, by a rule, weights; those given are read when backward comes by."""

    @staticmethod
    def forward(
        ctx: Any,
        targets: Tensor,
        class_weights: Tensor | None,
        options: Options,
        weights: Tensor | None,
        chosen: Backend,
        *logits: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        name, parameters = options.rule or (None, None)
        losses, scores, lse, mass, found = chosen.modality_cross_entropy(
            logits, targets, class_weights, *options[:2], name, parameters, options.num_joint
        )
        if options.rule is not None and options.applied:
            weights = found
        ctx.save_for_backward(targets, class_weights, lse, mass, *logits)
        # Not save_for_backward: it would refuse weights that were filled since.
        ctx.weights, ctx.chosen = weights, chosen
        ctx.options = options[:2]
        ctx.mark_non_differentiable(scores, found)
        ctx.set_materialize_grads(False)
        return losses, scores, found

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        targets, class_weights, lse, mass, *logits = ctx.saved_tensors
        needed = ctx.needs_input_grad[5:]
        out: list[Tensor | None] = [None] * len(logits)
        wanted = [m for m in range(len(logits)) if needed[m]]
        if grad_losses is None or not wanted:
            return None, None, None, None, None, *out
        grads: Sequence[Tensor]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # with create_graph: by torch's derivatives of the definition, which have derivatives
            losses = reference.modality_cross_entropy(logits, targets, class_weights, *ctx.options)[
                0
            ]
            if ctx.weights is not None:
                grad_losses = grad_losses * ctx.weights.to(grad_losses.dtype)
            grads = torch.autograd.grad(
                losses, [logits[m] for m in wanted], grad_losses, create_graph=True
            )
        else:
            grads = ctx.chosen.modality_cross_entropy_backward(
                [logits[m] for m in wanted],
                wanted,
                targets,
                class_weights,
                *ctx.options,
                lse,
                mass,
                grad_losses.contiguous(),
                ctx.weights,
            )
        for m, grad in zip(wanted, grads, strict=True):
            out[m] = grad
        return None, None, None, None, None, *out


def cross_entropies(
    logits: Logits,
    targets: Tensor,
    weights: Tensor | None,
    class_weights: Tensor | None,
    options: Options,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, scores, weights by the rule."""
    values = as_list(logits)
    check = partial(checks.cross_entropy, values, targets, class_weights, *options[:2])
    if not values or not all([isinstance(x, Tensor) for x in (targets, *values)]):
        check()
    chosen = select(values[0].device, backend)
    # The native op checks all of this itself, in a tenth of the time: it is asked first.
    if chosen is not native or targets.dtype != torch.int64:
        check()
        targets = targets.detach()
    if weights is not None:
        checks.vector("weights", weights, len(values), values[0].device)
        weights = weights.data.float().contiguous()  # .data shares memory, not the version counter
    dtype = torch.float64 if torch.float64 in [x.dtype for x in values] else torch.float32
    if class_weights is not None:
        class_weights = class_weights.detach().to(dtype).contiguous()
    if targets.dtype != torch.int64:
        targets = targets.to(dtype if targets.is_floating_point() else torch.int64)
    try:
        found: tuple[Tensor, Tensor, Tensor] = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
            *(targets.contiguous(), class_weights, options, weights, chosen),
            *[x.contiguous() for x in values],
        )
    except (RuntimeError, TypeError, NotImplementedError):
        check()
        raise
    return found


def as_list(logits: Logits) -> list[Tensor]:
    if isinstance(logits, Mapping):
        return list(logits.values())
    if not isinstance(logits, Tensor):
        return list(logits)
    if logits.dim() != 3:
        raise ValueError(f"`logits` has shape {list(logits.shape)}, allowed: [M, B, C]")
    return list(logits.unbind(0))
