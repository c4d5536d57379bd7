"""From what a user shows of a batch to the statistics that are known before backward."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from modgrad import checks, ops
from modgrad.late_fusion import late_fusion_logits

Logits = Mapping[str, Tensor] | Tensor
Head = nn.Linear | Mapping[str, nn.Linear] | nn.ModuleDict

# A probability below 1e-8 counts as that: a response's loss is at most 18.42.
_LEAST_LOG_PROBABILITY = math.log(1e-8)

Observed = dict[str, tuple[Tensor, int]]
"""Of each statistic, its mean over samples, float32 [M], and the number of samples."""


class Observation(TypedDict, total=False):
    """What the balancer's statistics come from.

    For scores, one of ``logits``, ``scores``, and ``features`` with ``head``; for the losses of
    mono-modal responses, ``responses``. All but ``scores`` come with ``targets``.

    logits: unimodal logits, [B, C] by modality, or [M, B, C] in the modalities' order.
    targets: the classes, [B].
    scores: one's own [M]; any measure that is larger where a modality alone does better (for
        regression, or several labels).
    features, head: what ``late_fusion_logits`` takes.
    responses: what ``mono_modal_responses`` returns, [B, C] by modality.
    """

    logits: Logits
    targets: Tensor
    scores: Tensor
    features: Mapping[str, Tensor]
    head: Head
    responses: Mapping[str, Tensor]


def in_order(
    argument: str, given: Mapping[str, Tensor], modalities: tuple[str, ...]
) -> dict[str, Tensor]:
    """The tensors in the modalities' order; any other set of names is an error."""
    if set(given) != set(modalities):
        raise ValueError(f"`{argument}` has {sorted(given)}, allowed: {sorted(modalities)}")
    return {name: given[name] for name in modalities}


def measure(
    observation: Observation,
    names: frozenset[str],
    modalities: tuple[str, ...],
    backend: str | None,
) -> Observed:
    """The statistics called ``names`` of a batch."""
    out: Observed = {}
    if "scores" in names:
        out["scores"] = _scores(observation, modalities, backend)
    if "response_losses" in names:
        out["response_losses"] = _response_losses(observation, modalities)
    return out


def add(a: Observed, b: Observed) -> Observed:
    """Two batches as one."""
    out: Observed = {}
    for name, (mean, count) in a.items():
        other, number = b[name]
        total = count + number
        out[name] = mean * (count / total) + other * (number / total), total
    return out


def _targets(observation: Observation) -> Tensor:
    targets = observation.get("targets")
    if targets is None:
        raise ValueError("`targets` is None, allowed with logits: the classes, [B]")
    return targets


def _scores(
    observation: Observation, modalities: tuple[str, ...], backend: str | None
) -> tuple[Tensor, int]:
    given = [name for name in ("logits", "scores", "features") if observation.get(name) is not None]
    if len(given) != 1:
        raise ValueError(f"given are {given}, allowed: one of `logits`, `scores`, `features`")
    M = len(modalities)
    if "scores" in given:
        scores = observation["scores"]
        if scores.shape != (M,) or not scores.is_floating_point():
            found = f"{scores.dtype} {list(scores.shape)}"
            raise ValueError(f"`scores` is {found}, allowed: floating-point [{M}]")
        return scores.detach().float().clone(), 1  # the caller may refill it
    targets = _targets(observation)
    if "features" in given:
        head = observation.get("head")
        if head is None:
            raise ValueError(
                "`head` is None, allowed with `features`: nn.Linear, or one by modality"
            )
        logits: Logits = late_fusion_logits(observation["features"], head)
    else:
        logits = observation["logits"]
    if isinstance(logits, Mapping):
        values = list(in_order("logits", logits, modalities).values())
    elif logits.dim() == 3 and len(logits) == M:
        values = list(logits.unbind(0))
    else:
        raise ValueError(f"`logits` has shape {list(logits.shape)}, allowed: [{M}, B, C]")
    return ops.modality_scores(values, targets, backend=backend), len(targets)


def _response_losses(observation: Observation, modalities: tuple[str, ...]) -> tuple[Tensor, int]:
    responses = observation.get("responses")
    if responses is None:
        raise ValueError("`responses` is None, allowed: what `mono_modal_responses` returns")
    values = list(in_order("responses", responses, modalities).values())
    targets = _targets(observation)
    checks.logits_and_targets(values, targets, "responses")
    log_p = torch.stack([x.detach().float() for x in values]).log_softmax(2)
    index = targets.long().expand(len(values), -1)[..., None]
    own = log_p.gather(2, index.clamp(0, log_p.shape[2] - 1)).clamp(min=_LEAST_LOG_PROBABILITY)
    inside = (index >= 0) & (index < log_p.shape[2])  # unchecked on a GPU: NaN, as for scores
    return -torch.where(inside, own, math.nan).mean((1, 2)), len(targets)
