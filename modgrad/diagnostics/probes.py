"""What each encoder knows, whatever the head makes of it: linear probes on frozen features."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from modgrad.diagnostics.extras import require
from modgrad.diagnostics.gathered import Array, checked_array, gather_features, standardised
from modgrad.diagnostics.loaders import last_of


@dataclass(frozen=True)
class Probes:
    """What ``linear_probes`` finds, by encoder."""

    accuracy: dict[str, float]
    """On the test loader."""
    train_accuracy: dict[str, float]
    chance: float
    """Test accuracy of the training set's most frequent class."""


def linear_probes(
    features: Callable[[Any], Mapping[str, Tensor]],
    train: Iterable[Any],
    test: Iterable[Any],
    *,
    targets: Callable[[Any], Tensor] = last_of,
    model: nn.Module | None = None,
    inverse_penalty: float = 1.0,
    progress: bool = True,
    process_group: ProcessGroup | None = None,
) -> Probes:
    """Accuracy of a logistic regression on each encoder's frozen features.

    Features are standardised by the training loader; constant ones count for nothing. A probe that
    is far above the modality's contribution shows a head that ignores what the encoder knows.

    Args:
        features: from a batch to each encoder's, [B, …] by name.
        train, test: loaders; the regression is fitted on the first, judged on the second.
        targets: from a batch to its classes, int [B]; by default its last item.
        model: put into eval mode, and back.
        inverse_penalty: scikit-learn's C, > 0.
        progress: a bar, where rich is installed.
        process_group: the ranks whose samples are put together; None means all.

    Raises:
        ValueError: no samples; one class only in training; features that are not finite.
        ImportError: scikit-learn is missing.
    """
    require("sklearn", "linear_probes")
    from sklearn.linear_model import LogisticRegression

    def gathered(loader: Iterable[Any]) -> tuple[dict[str, Array], Array]:
        return gather_features(
            features,
            loader,
            targets=targets,
            model=model,
            progress=progress,
            process_group=process_group,
        )

    (h_train, y_train), (h_test, y_test) = gathered(train), gathered(test)
    if set(h_train) != set(h_test):
        raise ValueError(f"`test` has features {sorted(h_test)}, allowed: {sorted(h_train)}")
    classes, counts = np.unique(y_train, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"`train` has classes {classes.tolist()}, allowed: at least two")
    accuracy, train_accuracy = {}, {}
    for name in h_train:
        pair = checked_array(name, h_train[name]), checked_array(name, h_test[name])
        fit, other = standardised(*pair)
        probe = LogisticRegression(C=inverse_penalty, max_iter=1000).fit(fit, y_train)
        train_accuracy[name] = float(probe.score(fit, y_train))
        accuracy[name] = float(probe.score(other, y_test))
    chance = float((y_test == classes[counts.argmax()]).mean())
    return Probes(accuracy, train_accuracy, chance)
