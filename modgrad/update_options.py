"""The keyword arguments that all fused updates take, and the checks of them."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import TypedDict

from modgrad import checks, rules
from modgrad.calls import seed_on
from modgrad.rules import Rule

Apply = Literal["gradient", "update"]


class UpdateOptions(TypedDict, total=False):
    """Keyword arguments that all updates take; ``modulated_sgd_`` names them."""

    maximize: bool
    apply: Apply
    noise: Tensor | None
    seed: int | Tensor | None
    stream: Sequence[int] | None
    grad_scale: Tensor | None
    found_inf: Tensor | None
    sq_norms: Tensor | None
    rule: Rule | None


def check_apply(apply: Apply) -> None:
    if apply not in get_args(Apply):
        raise ValueError(f"`apply` is {apply!r}, allowed: 'gradient', 'update'")


def one_element(name: str, value: Tensor | None, device: torch.device) -> Tensor | None:
    """One float32 element on the device, as ``GradScaler`` hands them to fused optimizers."""
    if value is None or (
        isinstance(value, Tensor)
        and value.dtype == torch.float32
        and value.numel() == 1
        and value.device == device
    ):
        return value
    kind = type(value).__name__
    found = (
        f"{value.dtype} {list(value.shape)} on {value.device}" if hasattr(value, "dtype") else kind
    )
    raise ValueError(f"`{name}` is {found}, allowed: one float32 element on {device}")


def in_range(name: str, value: float, low: float = 0.0, high: float = float("inf")) -> None:
    if not low <= value < high:
        raise ValueError(f"`{name}` is {value}, allowed: [{low:g}, {high:g})")


def _of_rule(rule: Rule | None, weights: Tensor) -> dict[str, Any]:
    if rule is None:
        return {}
    kind = rules.check(rule)
    if kind.reads != "gram" or kind.compares_losses:
        raise ValueError(f"`rule` is {rule.name!r}, allowed: one of norms, 'equal_norms'")
    if weights.dtype != torch.float32 or not weights.is_contiguous():
        found = f"{weights.dtype} of stride {weights.stride()}"
        raise ValueError(f"`weights` is {found}, allowed with `rule`: contiguous torch.float32")
    return {"rule": rule.name, "parameters": rule.parameters}


def checked(
    lr: float | Tensor,
    weights: Tensor,
    num_params: int,
    *,
    maximize: bool = False,
    apply: Apply = "gradient",
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    stream: Sequence[int] | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    sq_norms: Tensor | None = None,
    rule: Rule | None = None,
) -> dict[str, Any]:
    """The arguments in which both updates end, checked and as backends take them."""
    device, M = weights.device, len(weights)
    check_apply(apply)
    lr_tensor = None
    if isinstance(lr, Tensor):
        from_host = lr.device.type == "cpu"  # a copy that need not wait for the device
        rate = lr.detach().to(device, torch.float32, non_blocking=from_host)
        lr_tensor = one_element("lr", rate, device)
    else:
        in_range("lr", lr)
    if noise is not None:
        checks.vector("noise", noise, M, device)
        noise, seed = noise.detach().float().contiguous(), seed_on(device, seed)
    elif seed is not None:
        raise ValueError("`seed` is given without `noise`")
    if stream is not None and len(stream) != num_params:
        raise ValueError(f"`stream` has {len(stream)} entries, allowed: {num_params}")
    if sq_norms is not None and (
        sq_norms.dtype != torch.float64
        or sq_norms.shape != (2, M)
        or sq_norms.device != device
        or not sq_norms.is_contiguous()
    ):
        found = f"{sq_norms.dtype} {list(sq_norms.shape)} on {sq_norms.device}"
        raise ValueError(
            f"`sq_norms` is {found}, allowed: contiguous torch.float64 [2, {M}] on {device}"
        )
    return {
        **_of_rule(rule, weights),
        "maximize": maximize,
        "scale_update": apply == "update",
        "lr_tensor": lr_tensor,
        "grad_scale": one_element("grad_scale", grad_scale, device),
        "found_inf": one_element("found_inf", found_inf, device),
        "noise": noise,
        "seed": seed,
        "stream": stream,
        "sq_norms": sq_norms,
    }
