"""Cross entropies and scores of all modalities: one op forward, one for the gradients of all."""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modgrad import checks, rules
from modgrad.autograd import scale_backward
from modgrad.backends import native, reference, select
from modgrad.backends.protocol import Backend
from modgrad.late_fusion import shares
from modgrad.rules import Rule

Logits = Tensor | Sequence[Tensor] | Mapping[Any, Tensor]
JOINT = "joint"


class CrossEntropies(NamedTuple):
    """Mean cross entropies [M]; mean probabilities of the true class [M], without a gradient."""

    losses: Tensor
    scores: Tensor


class BlendedCrossEntropies(NamedTuple):
    """As ``CrossEntropies``, and the weighted sum of the losses, a scalar."""

    losses: Tensor
    scores: Tensor
    total: Tensor


class LateFusion(NamedTuple):
    """Logits [B, C], joint and by modality; losses and scores [1 + M], joint first; their total.

    ``weights``: float32 [M], by which gradients that enter the features are scaled, or None.
    """

    logits: dict[Hashable, Tensor]
    losses: Tensor
    scores: Tensor
    total: Tensor
    weights: Tensor | None = None


class BalancedCrossEntropies(NamedTuple):
    """As ``CrossEntropies``, and the weights by a rule of the scores, float32 [M]."""

    losses: Tensor
    scores: Tensor
    weights: Tensor


class _Options(NamedTuple):
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
        options: _Options,
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


def modality_cross_entropy(
    logits: Logits,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    class_weights: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    backend: str | None = None,
) -> CrossEntropies:
    """Cross entropy and score of every modality, as ``torch.nn.functional.cross_entropy`` means it.

        q_bc = w_c ((1 - s) t_bc + s / C)                  w class_weights, s label_smoothing
        losses[m] = -sum_bc q_bc log p_mbc / sum_b w_(y_b)  with probabilities: / B
        scores[m] = mean_b sum_c t_bc p_mbc                 p_mb = softmax(logits[m][b])

    In float32 (float64 for float64), each forward and backward in one op for all modalities.
    A class without mass adds nothing, also where its logit is -inf; with probabilities or
    smoothing, torch gives NaN there. Where every target is ignored, losses and scores are NaN, as
    in torch, and the gradients 0.

    Args:
        logits: M tensors [B, C_m], as a sequence or a mapping, or one tensor [M, B, C].
        targets: B integers t_b = y_b, or probabilities t [B, C]. On the CPU a class outside of
            [0, C) is an error; on a GPU, where that check would need a host read, it makes the loss
            and its gradients NaN.
        weights: [M], or None for 1: the gradient of loss m is multiplied by ``weights[m]``, its
            value is not. Read when backward reaches them: they may be filled in place until then.
        class_weights: w, [C], or None for 1. They do not count in scores.
        ignore_index: samples with this class are left out.
        label_smoothing: s, in [0, 1].
        backend: its name; None takes the first that can run.

    Returns:
        losses [M], float32 (float64 for float64), and scores [M], float32.
    """
    options = _Options(ignore_index, label_smoothing)
    losses, scores, _ = _cross_entropy(logits, targets, weights, class_weights, options, backend)
    return CrossEntropies(losses, scores)


def _cross_entropy(
    logits: Logits,
    targets: Tensor,
    weights: Tensor | None,
    class_weights: Tensor | None,
    options: _Options,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, scores, weights by the rule."""
    values = _as_list(logits)
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


def balanced_cross_entropy(
    logits: Logits,
    targets: Tensor,
    rule: Rule,
    *,
    num_joint: int = 0,
    class_weights: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    backend: str | None = None,
) -> BalancedCrossEntropies:
    """Cross entropies whose gradients are scaled by a balancer's rule, from this batch's scores.

    As ``modality_cross_entropy``; losses, scores and ``weights = rule(scores)`` come from one op,
    and the gradients of all logits, ``weights[m]`` times those of loss m, from another.

    Args:
        logits, targets: as there.
        rule: one that reads scores, such as ``OGM(0.8).rule``.
        num_joint: so many of the first logits are of joint heads: they take no part, weight 1.
        class_weights, ignore_index, label_smoothing, backend: as there.

    Returns:
        losses [M], scores float32 [M], weights float32 [M].
    """
    values = _as_list(logits)
    _check_rule(rule, len(values), num_joint)
    options = _Options(ignore_index, label_smoothing, rule, num_joint)
    found = _cross_entropy(values, targets, None, class_weights, options, backend)
    return BalancedCrossEntropies(*found)


def _check_rule(rule: Rule, num_logits: int, num_joint: int) -> None:
    if rules.check(rule).reads != "scores":
        raise ValueError(f"`rule` {rule.name!r} reads a gram, allowed: one of scores, 'ogm'")
    if not 0 <= num_joint <= num_logits - 2:
        raise ValueError(
            f"`num_joint` is {num_joint} of {num_logits} logits, allowed: at least 2 others"
        )


def blended_cross_entropy(
    logits: Logits,
    targets: Tensor,
    weights: Tensor,
    *,
    class_weights: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    backend: str | None = None,
) -> BlendedCrossEntropies:
    """The cross entropies of a joint head and M unimodal ones, and ``sum_i weights[i] losses[i]``.

    The gradients of all logits come from one op, each with its weight.

    Args:
        logits: those of M + 1 heads, as ``modality_cross_entropy`` takes them.
        weights: [M + 1], the blending weights, on the same device.
        targets, class_weights, ignore_index, label_smoothing, backend: as there.

    Source: Wang et al., What Makes Training Multi-Modal Classification Networks Hard?, CVPR 2020,
    eq. 2.
    """
    values = _as_list(logits)
    losses, scores = modality_cross_entropy(
        values,
        targets,
        class_weights=class_weights,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        backend=backend,
    )
    checks.vector("weights", weights, len(values), losses.device)
    total = torch.dot(losses, weights.detach().to(losses.dtype))
    return BlendedCrossEntropies(losses, scores, total)


def late_fusion_head(
    features: Sequence[Tensor] | Mapping[Any, Tensor],
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    rule: Rule | None = None,
    class_weights: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    backend: str | None = None,
) -> LateFusion:
    """A linear head on concatenated features: joint and unimodal logits, losses and scores.

        z_m = h_m W_m^T + b / M,   z_joint = sum_m z_m     W = [W_1 … W_M]

    One set of matrix products serves all: the shares of the modalities are what ``F.linear`` of the
    concatenation adds up. By default the joint loss alone trains: ``total`` is the joint loss, and
    the unimodal losses are measured on detached logits. With ``weights`` they train too.

    Args:
        features: M tensors [B, D_m], as a sequence or a mapping, in the order of concatenation; or
            those of a head on their sum, as in ``late_fusion_logits``.
        weight: [C, sum of D_m], as that of nn.Linear; bias: [C] or None.
        weights: [1 + M], joint first; ``total = sum_i weights[i] losses[i]``.
        rule: one that reads scores, such as ``OGM(0.8).rule``: the gradients on their way into the
            features, and so into the encoders, are scaled by its weights; the head's are not.
        targets, class_weights, ignore_index, label_smoothing, backend: as in
            ``modality_cross_entropy``.

    Returns:
        logits by the names of ``features`` (of a sequence, by number), and ``"joint"`` first;
        losses and scores [1 + M] in that order; total; the rule's weights [M], or None.

    Source: with ``rule``, Peng et al., CVPR 2022, whose coefficients act on the encoders.
    """
    named = dict(features) if isinstance(features, Mapping) else dict(enumerate(features))
    checks.tensors("features", list(named.values()))
    if JOINT in named:
        raise ValueError(f"`features` has {list(named)}, allowed: any name but {JOINT!r}")
    values, scale = list(named.values()), None
    if rule is not None:
        _check_rule(rule, len(values) + 1, 1)
        scale = torch.ones(len(values), device=values[0].device)  # filled below, read in backward
        values = list(scale_backward(values, scale, backend=backend))
    unimodal = shares(values, weight, bias)
    joint = torch.stack(unimodal).sum(0) if len(unimodal) > 2 else sum(unimodal[1:], unimodal[0])
    logits: dict[Hashable, Tensor] = {JOINT: joint, **dict(zip(named, unimodal, strict=True))}
    measured = list(logits.values())
    if weights is None:
        measured[1:] = [z.detach() for z in unimodal]
    else:
        checks.vector("weights", weights, len(measured), joint.device)
    options = _Options(ignore_index, label_smoothing, rule, num_joint=1, applied=False)
    losses, scores, found = _cross_entropy(measured, targets, None, class_weights, options, backend)
    if scale is not None:
        scale.copy_(found[1:])
    total = losses[0]
    if weights is not None:
        total = torch.dot(losses, weights.detach().to(losses.dtype))
    return LateFusion(logits, losses, scores, total, scale)


def _as_list(logits: Logits) -> list[Tensor]:
    if isinstance(logits, Mapping):
        return list(logits.values())
    if not isinstance(logits, Tensor):
        return list(logits)
    if logits.dim() != 3:
        raise ValueError(f"`logits` has shape {list(logits.shape)}, allowed: [M, B, C]")
    return list(logits.unbind(0))
