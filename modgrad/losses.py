"""Cross entropies of all modalities at once: plain, blended, balanced, of a late-fusion head."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modgrad import checks, rules
from modgrad.autograd import scale_backward
from modgrad.cross_entropy import Logits, Options, as_list, cross_entropies
from modgrad.late_fusion import shares
from modgrad.rules import Rule

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
    options = Options(ignore_index, label_smoothing)
    losses, scores, _ = cross_entropies(logits, targets, weights, class_weights, options, backend)
    return CrossEntropies(losses, scores)


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
    values = as_list(logits)
    _check_rule(rule, len(values), num_joint)
    options = Options(ignore_index, label_smoothing, rule, num_joint)
    found = cross_entropies(values, targets, None, class_weights, options, backend)
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
    values = as_list(logits)
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
    options = Options(ignore_index, label_smoothing, rule, num_joint=1, applied=False)
    losses, scores, found = cross_entropies(
        measured, targets, None, class_weights, options, backend
    )
    if scale is not None:
        scale.copy_(found[1:])
    total = losses[0]
    if weights is not None:
        total = torch.dot(losses, weights.detach().to(losses.dtype))
    return LateFusion(logits, losses, scores, total, scale)
