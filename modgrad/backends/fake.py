"""Registration of the ops with torch: their schemas, and what shape and dtype they return.

The fake implementations are what ``torch.compile`` and ``FakeTensorMode`` see, for every backend.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from modgrad.backends.protocol import SCHEMAS


def _one_device(tensors: Sequence[Tensor]) -> None:
    """A fake tensor among real ones brings a call here: it must not pass for done."""
    if len({tensor.device for tensor in tensors}) > 1:
        raise RuntimeError("the tensors are on different devices")


def _group_sq_norms(tensors: Sequence[Tensor], group: Sequence[int], num_groups: int) -> Tensor:
    _one_device(tensors)
    return tensors[0].new_empty(num_groups, dtype=torch.float64)


def _modulate_(
    grads: Sequence[Tensor],
    group: Sequence[int],
    weights: Tensor,
    noise: Tensor | None = None,
    seed: Tensor | None = None,
) -> None:
    _one_device([*grads, weights])


def _modality_scores(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    return targets.new_empty(len(logits), dtype=torch.float32)


def _scale_backward(grads: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    return [torch.empty_like(grad) for grad in grads]


def _group_gram(
    grads: Sequence[Tensor],
    tensor: Sequence[int],
    loss: Sequence[int],
    group: Sequence[int],
    num_groups: int,
    num_losses: int,
) -> Tensor:
    return grads[0].new_empty(num_groups, num_losses, num_losses, dtype=torch.float64)


def _combine_(
    out: Sequence[Tensor],
    grads: Sequence[Tensor],
    tensor: Sequence[int],
    loss: Sequence[int],
    group: Sequence[int],
    weights: Tensor,
) -> None:
    return None


def _rule_weights(
    statistic: Tensor,
    rule: str,
    parameters: Sequence[float],
    losses: Tensor | None,
    states: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    M, K = len(statistic), 1 if statistic.dim() == 1 else statistic.shape[-1]
    weights, next_ = (statistic.new_empty(n, K, dtype=torch.float32) for n in (M, len(states)))
    return weights, next_


def _balance_(
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
    _one_device([*out, *grads])
    gram = out[0].new_empty(num_groups, num_losses, num_losses, dtype=torch.float64)
    return gram, *_rule_weights(gram, rule, parameters, losses, states)


def _modality_cross_entropy(
    logits: Sequence[Tensor],
    targets: Tensor,
    class_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    rule: str | None = None,
    parameters: Sequence[float] | None = None,
    num_joint: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _one_device([*logits, targets])
    M, B, new = len(logits), len(targets), logits[0].new_empty
    wide = any(x.dtype == torch.float64 for x in logits)
    return (
        new(M, dtype=torch.float64 if wide else torch.float32),
        new(M, dtype=torch.float32),
        new(M, B, dtype=torch.float64),
        new(B + 1, dtype=torch.float64),
        new(0 if rule is None else M, dtype=torch.float32),
    )


def _modality_cross_entropy_backward(
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
    return [torch.empty_like(x) for x in logits]


def _update(params: Sequence[Tensor], grads: Sequence[Tensor], *rest: Any, **options: Any) -> None:
    """Of every fused update: what it changes is in its schema."""
    _one_device([*params, *grads, *(x for value in rest for x in _tensors_in(value))])


def _tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [x for x in value if isinstance(x, Tensor)] if isinstance(value, list) else []


_FAKES: dict[str, Callable[..., Any]] = {
    "group_sq_norms": _group_sq_norms,
    "modulate_": _modulate_,
    "modality_scores": _modality_scores,
    "scale_backward": _scale_backward,
    "group_gram": _group_gram,
    "combine_": _combine_,
    "rule_weights": _rule_weights,
    "balance_": _balance_,
    "modality_cross_entropy": _modality_cross_entropy,
    "modality_cross_entropy_backward": _modality_cross_entropy_backward,
    "modulated_sgd_": _update,
    "modulated_adam_": _update,
}


def register(
    backend: str,
    implementations: dict[str, Callable[..., Any]] | None = None,
    tags: Sequence[torch.Tag] = (),
) -> None:
    """Define ``modgrad_<backend>::<op>`` for every op; C++ brings its implementations itself."""
    namespace = f"modgrad_{backend}"
    library = torch.library.Library(namespace, "DEF")
    _LIBRARIES.append(library)
    for op, schema in SCHEMAS.items():
        library.define(op + schema, tags=tags)
        if implementations is not None:
            library.impl(op, implementations[op], "CompositeExplicitAutograd")
        torch.library.register_fake(f"{namespace}::{op}", _FAKES[op], lib=library)


_LIBRARIES: list[torch.library.Library] = []
