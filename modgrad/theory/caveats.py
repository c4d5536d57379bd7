"""Where the theory of the unimodal phase does not hold for given data and training."""

import numpy as np

from modgrad.theory.statistics import SecondOrder, is_singular


def caveats(
    data: SecondOrder,
    L: int,
    F: int,
    u: float,
    lr: float | None,
    initialise: str,
    linear: bool,
    first: str,
    P: float,
    rates: tuple[float, float, float],
) -> tuple[str, ...]:
    """A sentence for each assumption that does not hold.

    Args:
        L, F, u: depth, fusion layer, initial norm.
        first, P: the modality learned first, and the norm of its plateau.
        rates: w_A, w_B and w'_B, times the weights of the gradients.
    """
    w_A, w_B, w_left = rates
    found = []
    if not linear:
        found.append("the network is not linear: the formulas are a guide to order, not to times")
    if initialise == "random" and L > 2:
        found.append(
            "a random initialisation of more than two layers is not balanced: times are several"
            " times longer, and ratios of single seeds half to twice these"
        )
    if data.cross.shape[1] > 1:
        found.append("vector targets are learned in several stages; these times are of the whole")
    for m in data.modalities:
        rows = data.rows(m)
        if not data.covariance[rows, rows].any():
            found.append(f"{m} is constant: never learned")
        elif is_singular(data.covariance[rows, rows]):
            found.append(f"the covariance of {m} is singular: its pseudo-inverse is used")
    spread = np.linalg.eigvalsh(data.covariance[data.rows(first), data.rows(first)])
    if 0 < 10 * spread[0] < spread[-1] and not is_singular(data.covariance):
        found.append(
            f"the covariance of {first} has condition {spread[-1] / spread[0]:.2g}, and its plateau"
            " is reached slowly: expect errors of the ratio of 5 to 30 %, above 100 of 10 to 60 %"
        )
    if is_singular(data.covariance) and w_left > 0:
        found.append(
            "the joint covariance is singular: training does not end at the solution of least"
            " norm, which `misattribution` takes for the end"
        )
    if w_A - w_B <= 0.05 * w_A:
        found.append("the modalities are about equally strong: the initialisation decides")
    if w_left == 0 and F == 1 and w_B > 0:
        found.append("early fusion learns from both modalities even where one of them suffices")
    if P > 0 and u > 0.3 * P ** (1 / L):
        found.append(f"`init` is not small beside {P ** (1 / L):.3g}, what the layers grow to")
    elif L == 3 and F > 1 and u > 0.02 * P ** (1 / 3):
        kind, small, large = ("late", 1, 7) if F == L else ("intermediate", 14, 31)
        found.append(
            f"{kind} fusion of three layers: corrections fall slowly with `init`, expect errors of"
            f" the ratio of up to {small} % at 0.03 and {large} % at 0.1"
        )
    if lr is not None:
        if lr * L * spread[-1] * P ** (2 - 2 / L) > 2:
            found.append("`lr` is too large: training diverges near the plateau")
        elif L > 2 and lr * w_A > 0.3:
            found.append(
                "`lr` is not small, and the formulas of deep networks are for gradient flow"
            )
    return tuple(found)
