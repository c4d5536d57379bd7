"""What is read off the training of linear networks.

Shape letters: N problems side by side, T steps, D features of both modalities.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modgrad.theory.statistics import Array, SecondOrder


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The total weights of N networks during training."""

    statistics: tuple[SecondOrder, ...]
    totals: Array
    """[T + 1, N, D]: f(x) = totals[t, n] . x before step t."""

    def norms(self, modality: str) -> Array:
        """[T + 1, N]: |W_m|"""
        rows = self.statistics[0].rows(modality)
        return np.asarray(np.linalg.norm(self.totals[:, :, rows], axis=2))

    def losses(self) -> Array:
        """[T + 1, N]: 1/2 E|y - f(x)|^2"""
        columns = [
            (np.einsum("td,de,te->t", w, s.covariance, w) - 2 * w @ s.cross[:, 0] + s.power) / 2
            for s, w in zip(self.statistics, self.totals.swapaxes(0, 1), strict=True)
        ]
        return np.asarray(np.maximum(np.stack(columns, 1), 0.0))

    def half_times(self, first: str | Sequence[str]) -> Mapping[str, Array]:
        """[N] steps until |W_m| is half of its plateau, by modality; inf where it never is.

        The plateau of the modality ``first`` (of all problems, or of each) is that of its
        regression alone, the other's that of the solution. Linear between steps.
        """
        firsts = [first] * len(self.statistics) if isinstance(first, str) else list(first)
        return {
            m: np.array(
                [
                    _crossing(
                        norms, np.linalg.norm(s.alone(m) if m == f else s.solution[s.rows(m)]) / 2
                    )
                    for norms, s, f in zip(self.norms(m).T, self.statistics, firsts, strict=True)
                ]
            )
            for m in self.statistics[0].modalities
        }


def _crossing(values: Array, level: Any) -> float:
    reached = values >= level
    if not reached.any() or level == 0:
        return math.inf
    t = int(reached.argmax())
    return 0.0 if t == 0 else t - float((values[t] - level) / (values[t] - values[t - 1]))
