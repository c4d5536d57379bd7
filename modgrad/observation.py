"""From what a user shows of a batch to the modalities' scores."""

from collections.abc import Mapping

from torch import Tensor, nn
from typing_extensions import TypedDict

from modgrad import ops
from modgrad.late_fusion import late_fusion_logits

Logits = Mapping[str, Tensor] | Tensor
Head = nn.Linear | Mapping[str, nn.Linear]


class Observation(TypedDict, total=False):
    """One of ``logits``, ``scores``, and ``features`` with ``head``; ``targets`` unless ``scores``.

    logits: unimodal logits, [B, C] by modality, or [M, B, C] in the modalities' order.
    targets: the classes, [B].
    scores: one's own [M]; any measure that is larger where a modality alone does better (for
        regression, or several labels).
    features, head: what ``late_fusion_logits`` takes.
    """

    logits: Logits
    targets: Tensor
    scores: Tensor
    features: Mapping[str, Tensor]
    head: Head


def in_order(
    argument: str, given: Mapping[str, Tensor], modalities: tuple[str, ...]
) -> dict[str, Tensor]:
    """The tensors in the modalities' order; any other set of names is an error."""
    if set(given) != set(modalities):
        raise ValueError(f"`{argument}` has {sorted(given)}, allowed: {sorted(modalities)}")
    return {name: given[name] for name in modalities}


def measure_scores(
    observation: Observation, modalities: tuple[str, ...], backend: str | None
) -> tuple[Tensor, int]:
    """Scores summed over the samples of a batch, [M], and the number of samples."""
    given = [name for name in ("logits", "scores", "features") if observation.get(name) is not None]
    if len(given) != 1:
        raise ValueError(f"given are {given}, allowed: one of `logits`, `scores`, `features`")
    M = len(modalities)
    if "scores" in given:
        scores = observation["scores"]
        if scores.shape != (M,) or not scores.is_floating_point():
            found = f"{scores.dtype} {list(scores.shape)}"
            raise ValueError(f"`scores` is {found}, allowed: floating-point [{M}]")
        return scores.detach().float(), 1
    targets = observation.get("targets")
    if targets is None:
        raise ValueError("`targets` is None, allowed with logits: the classes, [B]")
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
    return ops.modality_scores(values, targets, backend=backend) * len(targets), len(targets)
