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

_OTHER_TARGETS = "; to ignore samples, or for soft targets: observe(scores=…) (docs/losses.md)"

Observed = dict[str, tuple[Tensor, int]]
"""Of each statistic, its mean over samples, float32 [M], and the number of samples."""


class Observation(TypedDict, total=False):
    """What the balancer's statistics come from.

    For scores, one of ``logits``, ``scores``, and ``features`` with ``head``; for the losses of
    mono-modal responses, ``responses``. All but ``scores`` come with ``targets``.

    logits: unimodal logits, [B, C] by modality, or [M, B, C] in the modalities' order.
    targets: the classes, [B]. Where some are to be ignored, or are probabilities, give the scores
        of ``modality_cross_entropy``, which knows them.
    scores: one's own [M]; any measure that is larger where a modality alone does better (for
        regression, or several labels).
    features, head: what ``late_fusion_logits`` takes. With a head on the concatenation, the order
        of ``features``, not that of the modalities, is the order in which they were concatenated;
        another order cannot be told from it where the widths add up, and gives wrong scores.
    responses: what ``mono_modal_responses`` returns, [B, C] by modality.
    """

    logits: Logits
    targets: Tensor
    scores: Tensor
    features: Mapping[str, Tensor]
    head: Head
    responses: Mapping[str, Tensor]


_KEYWORDS = frozenset(Observation.__annotations__)


def check_keywords(observation: Observation) -> None:
    """Raise TypeError where one is none of ``Observation``'s."""
    if not observation.keys() <= _KEYWORDS:
        unknown = sorted(observation.keys() - _KEYWORDS)
        allowed = ", ".join(f"`{name}`" for name in Observation.__annotations__)
        raise TypeError(f"observe() is given {unknown}, allowed: {allowed}")


def in_order(
    argument: str, given: Mapping[str, Tensor], modalities: tuple[str, ...]
) -> dict[str, Tensor]:
    """The tensors in the modalities' order; anything else than one for each is an error."""
    if not isinstance(given, Mapping):
        found = f"`{argument}` is {type(given).__name__}"
        raise TypeError(f"{found}, allowed: a mapping from {sorted(modalities)} to tensors")
    if set(given) != set(modalities):
        found = f"`{argument}` has {sorted(given, key=str)}"
        raise ValueError(f"{found}, allowed: {sorted(modalities)}")
    for name, value in given.items():
        if not isinstance(value, Tensor):
            found = type(value).__name__
            raise TypeError(f"`{argument}[{name!r}]` is {found}, allowed: a tensor")
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
        if not isinstance(scores, Tensor):
            found = f"`scores` is {type(scores).__name__}"
            order = ", ".join(modalities)
            raise TypeError(f"{found}, allowed: a floating-point tensor [{M}], of {order}")
        if scores.shape != (M,) or not scores.is_floating_point():
            found = f"{scores.dtype} {list(scores.shape)}"
            raise ValueError(f"`scores` is {found}, allowed: floating-point [{M}]")
        return scores.detach().float().clone(), 1  # the caller may refill it
    targets = _targets(observation)
    keys = modalities
    if "features" in given:
        head = observation.get("head")
        if head is None:
            raise ValueError(
                "`head` is None, allowed with `features`: nn.Linear, or one by modality"
            )
        in_order("features", observation["features"], modalities)
        logits: Logits = late_fusion_logits(_as_head(observation["features"], head), head)
    else:
        logits = observation["logits"]
    if isinstance(logits, Mapping):
        values = list(in_order("logits", logits, modalities).values())
    elif not isinstance(logits, Tensor):
        allowed = f"a mapping from {sorted(modalities)} to tensors, or a tensor [{M}, B, C]"
        raise TypeError(f"`logits` is {type(logits).__name__}, allowed: {allowed}")
    elif logits.dim() == 3 and len(logits) == M:
        values, keys = list(logits.unbind(0)), ()
    else:
        raise ValueError(f"`logits` has shape {list(logits.shape)}, allowed: [{M}, B, C]")
    try:
        checks.logits_and_targets(values, targets, "logits", keys, _OTHER_TARGETS)
    except (TypeError, ValueError):
        _check_features(observation.get("features"), targets)  # where they are the cause
        raise
    return ops.scores(values, targets, backend=backend), len(targets)


def _as_head(features: Mapping[str, Tensor], head: Head) -> Mapping[str, Tensor]:
    """Features in the dtype of the head that takes them: autocast may be over by now."""
    heads = {name: head for name in features} if isinstance(head, nn.Linear) else head
    if not isinstance(heads, Mapping | nn.ModuleDict) or set(heads) != set(features):
        return features  # for the check that follows
    dtypes = {name: getattr(heads[name], "weight", features[name]).dtype for name in features}
    return {name: h.to(dtypes[name]) for name, h in features.items()}


def _check_features(features: Mapping[str, Tensor] | None, targets: Tensor) -> None:
    """A row for each target; targets that are at fault themselves are left to their check."""
    if features is None or not isinstance(targets, Tensor) or targets.dim() != 1:
        return
    for name, h in features.items():
        if h.dim() != 2 or len(h) != len(targets):
            found = f"`features[{name!r}]` has shape {list(h.shape)}"
            raise ValueError(f"{found}, allowed: [{len(targets)}, D], as there are targets")


def _response_losses(observation: Observation, modalities: tuple[str, ...]) -> tuple[Tensor, int]:
    responses = observation.get("responses")
    if responses is None:
        raise ValueError("`responses` is None, allowed: what `mono_modal_responses` returns")
    values = list(in_order("responses", responses, modalities).values())
    targets = _targets(observation)
    checks.logits_and_targets(values, targets, "responses", modalities)
    log_p = torch.stack([x.detach().float() for x in values]).log_softmax(2)
    index = targets.long().expand(len(values), -1)[..., None]
    own = log_p.gather(2, index.clamp(0, log_p.shape[2] - 1)).clamp(min=_LEAST_LOG_PROBABILITY)
    inside = (index >= 0) & (index < log_p.shape[2])  # unchecked on a GPU: NaN, as for scores
    return -torch.where(inside, own, math.nan).mean((1, 2)), len(targets)
