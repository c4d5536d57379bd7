"""Argument checks of the public functions: the argument, what was found, what is allowed."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def tensors(name: str, values: Sequence[Tensor], keys: Sequence[object] = ()) -> torch.device:
    """``values`` are strided floating-point tensors on one device, which is returned.

    Errors name an entry by its number, or by its key where ``keys`` are given.
    """
    if not values:
        raise ValueError(f"`{name}` is empty, allowed: at least one tensor")
    # Sets first: 0.1 us a tensor where the loop below, which finds the culprit, takes 0.4.
    if (
        all(issubclass(kind, Tensor) for kind in set(map(type, values)))
        and {value.layout for value in values} == {torch.strided}
        and {value.dtype for value in values} <= set(FLOATS)
        and len({value.device for value in values}) == 1
    ):
        return values[0].device
    device = getattr(values[0], "device", None)
    keys = keys or range(len(values))
    for i, value in zip(keys, values, strict=True):
        if not isinstance(value, Tensor):
            raise TypeError(f"`{name}[{i!r}]` is {type(value).__name__}, allowed: a tensor")
        if value.layout != torch.strided:
            raise ValueError(
                f"`{name}[{i!r}]` has layout {value.layout}, allowed: torch.strided"
                " (sparse gradients come from nn.Embedding(sparse=True))"
            )
        if value.dtype not in FLOATS:
            raise TypeError(f"`{name}[{i!r}]` has dtype {value.dtype}, allowed: {FLOATS}")
        if value.device != device:
            raise ValueError(
                f"`{name}[{i!r}]` is on {value.device}, allowed: {device},"
                f" where `{name}[{keys[0]!r}]` is"
            )
    raise AssertionError("unreachable: one of the tensors is at fault")


def names(argument: str, values: Iterable[str]) -> tuple[str, ...]:
    """``values`` are strings, and not the letters of one."""
    if not isinstance(values, str) and isinstance(values, Iterable):
        found = tuple(values)
        if all(isinstance(name, str) for name in found):
            return found
        values = found
    example = f", such as [{values!r}]" if isinstance(values, str) else ""
    raise TypeError(f"`{argument}` is {values!r}, allowed: names in a list{example}")


def group(values: Sequence[int], num_tensors: int, num_groups: int) -> None:
    """``values`` assigns each of ``num_tensors`` tensors to a group in [0, num_groups)."""
    if len(values) != num_tensors:
        raise ValueError(f"`group` has {len(values)} entries, allowed: {num_tensors}, one a tensor")
    if num_groups < 1:
        raise ValueError(f"`num_groups` is {num_groups}, allowed: at least 1")
    if not (min(values) >= 0 and max(values) < num_groups):
        i, g = next((i, g) for i, g in enumerate(values) if not 0 <= g < num_groups)
        raise ValueError(f"`group[{i}]` is {g}, outside [0, {num_groups})")


def vector(name: str, value: Tensor, size: int | None, device: torch.device) -> None:
    """``value`` is a floating-point tensor of shape [size] on ``device``; None means any size."""
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` is {type(value).__name__}, allowed: a tensor")
    if value.dim() != 1 or (size is not None and len(value) != size) or len(value) == 0:
        allowed = "[M], M >= 1" if size is None else f"[{size}]"
        raise ValueError(f"`{name}` has shape {list(value.shape)}, allowed: {allowed}")
    if value.dtype not in FLOATS:
        raise TypeError(f"`{name}` has dtype {value.dtype}, allowed: {FLOATS}")
    if value.device != device:
        raise ValueError(f"`{name}` is on {value.device}, allowed: {device}")


def logits_and_targets(
    logits: Sequence[Tensor],
    targets: Tensor,
    name: str = "logits",
    keys: Sequence[object] = (),
    otherwise: str = "",
) -> None:
    """M tensors [B, C], and B classes in [0, C); on a GPU the classes themselves are not read.

    ``otherwise`` ends the errors of targets that are no such classes.
    """
    device = tensors(name, logits, keys)
    _classes_of_samples(targets, device, otherwise)
    _rows(name, logits, len(targets), keys)
    _classes(targets, min(value.shape[1] for value in logits), otherwise=otherwise)


def cross_entropy(
    logits: Sequence[Tensor],
    targets: Tensor,
    class_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> torch.device:
    """M tensors [B, C], and B classes or probabilities [B, C]; returns their device."""
    device = tensors("logits", logits)
    soft = isinstance(targets, Tensor) and targets.is_floating_point()
    if not soft:
        _classes_of_samples(targets, device)
    elif targets.dim() != 2 or len(targets) == 0 or targets.device != device:
        found = f"{targets.dtype} {list(targets.shape)} on {targets.device}"
        raise ValueError(f"`targets` is {found}, allowed: [B, C], B >= 1, on {device}")
    _rows("logits", logits, len(targets))
    C = logits[0].shape[1]
    if soft or class_weights is not None:
        for i, value in enumerate(logits):
            if value.shape[1] != C:
                raise ValueError(
                    f"`logits[{i}]` has {value.shape[1]} classes, allowed with class weights or"
                    f" probabilities: {C}, as `logits[0]`"
                )
    if class_weights is not None:
        vector("class_weights", class_weights, C, device)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"`label_smoothing` is {label_smoothing}, allowed: [0, 1]")
    if not soft:
        _classes(targets, min(value.shape[1] for value in logits), ignore_index)
    elif targets.shape[1] != C:
        raise ValueError(f"`targets` has shape {list(targets.shape)}, allowed: [B, {C}]")
    elif ignore_index >= 0:
        raise ValueError(f"`ignore_index` is {ignore_index}, allowed with classes [B] only")
    return device


def _classes_of_samples(targets: Tensor, device: torch.device, otherwise: str = "") -> None:
    if not isinstance(targets, Tensor):
        raise TypeError(f"`targets` is {type(targets).__name__}, allowed: a tensor")
    if targets.dtype not in INTEGERS:
        raise TypeError(f"`targets` has dtype {targets.dtype}, allowed: {INTEGERS}{otherwise}")
    if targets.dim() != 1 or len(targets) == 0:
        found = f"`targets` has shape {list(targets.shape)}"
        raise ValueError(f"{found}, allowed: [B], B >= 1{otherwise}")
    if targets.device != device:
        raise ValueError(f"`targets` is on {targets.device}, allowed: {device}")


def _rows(name: str, values: Sequence[Tensor], num_rows: int, keys: Sequence[object] = ()) -> None:
    for i, value in zip(keys or range(len(values)), values, strict=True):
        if value.dim() != 2 or len(value) != num_rows or value.shape[1] < 1:
            raise ValueError(
                f"`{name}[{i!r}]` has shape {list(value.shape)}, allowed: [{num_rows}, C], C >= 1"
            )


def _classes(
    targets: Tensor, num_classes: int, ignored: int | None = None, otherwise: str = ""
) -> None:
    """Every target is in range. Checked on the CPU only: on a GPU it would need a host read."""
    if (
        targets.device.type != "cpu"
        or torch.compiler.is_compiling()
        or isinstance(targets, FakeTensor)
    ):
        return
    values = targets.numpy()  # no copy, and no op of torch
    bad = (values < 0) | (values >= num_classes)
    if ignored is not None:
        bad &= values != ignored
    if bad.any():
        i = int(bad.argmax())
        found = f"`targets[{i}]` is {values[i]}"
        raise ValueError(f"{found}, outside [0, {num_classes}){otherwise}")
