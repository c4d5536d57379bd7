"""Features of a whole loader on the host: what scikit-learn fits."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from modgrad.diagnostics.loaders import batches, evaluating, last_of
from modgrad.distributed import is_alone

Array = NDArray[Any]


def gather_features(
    features: Callable[[Any], Mapping[str, Tensor]],
    loader: Iterable[Any],
    *,
    targets: Callable[[Any], Tensor] = last_of,
    model: nn.Module | None = None,
    progress: bool = True,
    process_group: ProcessGroup | None = None,
) -> tuple[dict[str, Array], Array]:
    """The features of a loader by name, float64 [N, D], and its targets [N].

    Of all ranks, in their order. ``features`` gives a batch's, [B, …]; further axes are flattened.

    Raises:
        ValueError: no batches; names, or numbers of samples, that differ.
    """
    found: dict[str, list[Array]] = {}
    labels: list[Array] = []
    with evaluating(model):
        for batch in batches(loader, "features", progress):
            y = targets(batch)
            labels.append(y.cpu().numpy())
            of_batch = features(batch)
            if labels[1:] and set(of_batch) != set(found):
                raise ValueError(f"`features` has {sorted(of_batch)}, allowed: {sorted(found)}")
            for name, h in of_batch.items():
                if len(h) != len(y):
                    raise ValueError(
                        f"`{name}` has {len(h)} samples, allowed: {len(y)}, as targets"
                    )
                found.setdefault(name, []).append(h.flatten(1).double().cpu().numpy())
    arrays = {name: np.concatenate(parts) for name, parts in found.items()}
    return _of_all_ranks(arrays, np.concatenate(labels), process_group)


def _of_all_ranks(
    arrays: dict[str, Array], labels: Array, group: ProcessGroup | None
) -> tuple[dict[str, Array], Array]:
    if is_alone(group):
        return arrays, labels
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, (arrays, labels), group=group)
    joined = {name: np.concatenate([part[0][name] for part in parts]) for name in arrays}
    return joined, np.concatenate([part[1] for part in parts])


def checked_array(argument: str, value: Tensor | Array) -> Array:
    """float64 [N, D], finite, with samples."""
    array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, np.float64)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"`{argument}` has shape {list(array.shape)}, allowed: [N, D], not empty")
    if not np.isfinite(array).all():
        raise ValueError(f"`{argument}` holds NaN or infinity, allowed: finite numbers")
    return array


def standardised(fit: Array, *others: Array) -> list[Array]:
    """Each column less its mean in ``fit``, over its deviation there; a constant one becomes 0."""
    mean, deviation = fit.mean(0), fit.std(0)
    # what rounding of a constant leaves is no deviation
    constant = deviation <= 1e-12 * np.abs(fit).max(0, initial=0)
    scale = np.where(constant, 0.0, 1 / np.where(constant, 1.0, deviation))
    return [(x - mean) * scale for x in (fit, *others)]
