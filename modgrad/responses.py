"""Mono-modal responses: each modality's Shapley share of the logits."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import combinations

import torch
from torch import Tensor, nn

from modgrad.late_fusion import late_fusion_logits

_MOST_MODALITIES = 10  # 1,023 forward passes


def mono_modal_responses(
    forward: Callable[[frozenset[str]], Tensor],
    modalities: Iterable[str],
    *,
    model: nn.Module | None = None,
) -> dict[str, Tensor]:
    """Each modality's Shapley share of the logits; the shares sum to those of all modalities.

        phi_m = sum over S without m of |S|! (M - |S| - 1)! / M! (f(S + m) - f(S)),   f(none) := 0

    f(S) are the logits with the modalities of S present and the others absent. Their gradients are
    kept: 2^M - 1 forward passes, and as many backward. Sums are in float32 at least.

    Args:
        forward: from the present modalities to logits, [B, C, …] of any further shape. Called for
            every non-empty set, first for all of them.
        modalities: 2 to 10 names, or a ``Modalities``.
        model: put into eval mode where something is absent, and back: no dropout there, and batch
            norm learns no statistics of absent inputs. None leaves modes to ``forward``.

    Returns:
        A tensor by modality, of the shape of the logits.

    Raises:
        ValueError: the number of modalities; a name that is there twice; shapes that differ.
        TypeError: ``forward`` returns no floating-point tensor.

    Source: Li et al., Boosting Multi-modal Model Performance with Adaptive Gradient Modulation,
    ICCV 2023.
    """
    names = tuple(modalities)
    M = len(names)
    if not 2 <= M <= _MOST_MODALITIES or len(set(names)) < M:
        allowed = f"2 to {_MOST_MODALITIES} different names"
        raise ValueError(f"`modalities` is {list(names)}, allowed: {allowed}")
    everything = frozenset(names)
    # first, in train mode: later its running statistics would overwrite what the others have saved
    logits = {everything: _checked(forward(everything), everything, None)}
    with nullcontext() if model is None else eval_mode(model):
        for size in range(M - 1, 0, -1):
            for present in map(frozenset, combinations(names, size)):
                logits[present] = _checked(forward(present), present, logits[everything])
    return {name: _shapley_share(name, logits, M) for name in names}


def _shapley_share(name: str, logits: Mapping[frozenset[str], Tensor], M: int) -> Tensor:
    """Numbers from the host, and no matrix product: TF32 and autocast would round it."""
    total: Tensor | None = None
    for present, value in logits.items():
        others = len(present) - (name in present)
        weight = 1 / (M * math.comb(M - 1, others))
        weight = weight if name in present else -weight
        total = value * weight if total is None else total.add(value, alpha=weight)
    assert total is not None
    return total


def _checked(logits: Tensor, present: frozenset[str], first: Tensor | None) -> Tensor:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        found = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"`forward` returns {found}, allowed: a floating-point tensor")
    if first is not None and logits.shape != first.shape:
        raise ValueError(
            f"`forward` returns shape {list(logits.shape)} for {sorted(present)},"
            f" allowed: {list(first.shape)}, as for all modalities"
        )
    return _wide(logits)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and back to its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def masked(inputs: Mapping[str, Tensor], present: Collection[str]) -> dict[str, Tensor]:
    """The inputs of the present modalities, and zeros of the same shape for the absent ones.

    Zero is what the paper means by absence. A network may tell it apart from nothing: biases, batch
    norm and token 0 of an embedding answer to it.
    """
    _check_present(present, inputs)
    return {name: x if name in present else torch.zeros_like(x) for name, x in inputs.items()}


def present_mask(
    modalities: Iterable[str], present: Collection[str], device: torch.device | str = "cpu"
) -> Tensor:
    """bool [M], true for the present modalities: for a model that takes a mask, made on the device.

    Where the model can read names instead, hand it ``present`` itself.
    """
    names = tuple(modalities)
    _check_present(present, names)
    bits = sum(1 << i for i, name in enumerate(names) if name in present)
    return ((bits >> torch.arange(len(names), device=device)) & 1).bool()


def _check_present(present: Collection[str], modalities: Collection[str]) -> None:
    if not set(present) <= set(modalities):
        raise ValueError(f"`present` is {sorted(present)}, allowed: some of {list(modalities)}")


def late_fusion_responses(
    features: Mapping[str, Tensor],
    head: nn.Linear | Mapping[str, nn.Linear],
    absent: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """``mono_modal_responses`` of a linear late-fusion head, without its 2^M - 1 passes.

    With z_m and v_m the shares of modality m in the logits (``late_fusion_logits``) where it is
    present and where it is absent, f(S) = sum of z_m in S + sum of v_m outside, and

        phi_m = z_m - v_m + 1/M sum_n v_n

    Args:
        features: M tensors [B, D_m], in the order in which they were concatenated.
        head: as for ``late_fusion_logits``.
        absent: what each encoder makes of an absent input, [D_m] or [1, D_m]: run it in eval mode
            on one sample of zeros. None means 0, as of an encoder without biases.

    Returns:
        M tensors [B, C], by modality, in float32 at least.
    """
    zeros = {name: h.new_zeros(h.shape[-1]) for name, h in features.items()}
    given = zeros if absent is None else absent
    if set(given) != set(features):
        raise ValueError(f"`absent` has {sorted(given)}, allowed: {sorted(features)}")
    for name, zero in zeros.items():
        if given[name].shape not in (zero.shape, zero[None].shape):
            raise ValueError(
                f"`absent[{name!r}]` has shape {list(given[name].shape)},"
                f" allowed: [{len(zero)}] or [1, {len(zero)}]"
            )
    rows = {name: given[name].reshape(1, -1) for name in features}
    z = {name: _wide(share) for name, share in late_fusion_logits(features, head).items()}
    v = {name: _wide(share) for name, share in late_fusion_logits(rows, head).items()}
    common = torch.stack(list(v.values())).mean(0)
    return {name: z[name] - v[name] + common for name in features}
