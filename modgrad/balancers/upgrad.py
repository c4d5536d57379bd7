"""UPGrad: the mean of the gradients, each projected to where it conflicts with none."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from modgrad.balancers.base import Modulation, NoState, Statistics
from modgrad.balancers.gram import check_several, evenly, taking_part
from modgrad.balancers.simplex import MAX_LOSSES, best, definite, face_inverses, normalised
from modgrad.rules import or_plain


@dataclass(frozen=True)
class UPGrad:
    """Unconflicting projection: in each modality, the mean of the gradients' projections.

        v_k     = argmin |sum_j v_j g_j|^2   over  v >= e_k          (so sum_j v_kj g_j is the
                  projection of g_k onto the dual cone {d : <d, g_j> >= 0 for all j})
        weights = mean_k v_k

    The result conflicts with no gradient. Without conflict weights are 1/K, a mean and not a sum.
    Losses without a gradient in a modality have weight 0 there and do not count in K; where all are
    without, weights are 1/K; where the gram is not finite, 1. The projections are exact: see
    ``simplex.py``.

    Source: Quinton and Rey, Jacobian Descent for Multi-Objective Optimization, 2024. The authors'
    library takes the mean too; it adds 1e-4 to the diagonal of the normalised gram, where 1e-12 is
    added here.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def init(self, modalities: tuple[str, ...], num_losses: int, device: torch.device) -> NoState:
        check_several(self, num_losses, MAX_LOSSES)
        return NoState()

    def update(self, statistics: Statistics, state: NoState) -> tuple[Modulation, NoState]:
        assert statistics.gram is not None
        part = taking_part(statistics.gram)
        gram = definite(normalised(statistics.gram, part))
        # v_k = e_k + u with u >= 0; inside a face u = -G^-1 (column k of G), as a row: [M, k, F, j]
        u = -(face_inverses(gram, part) @ gram[:, None]).permute(0, 3, 1, 2)
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        candidates = u.nan_to_num(0.0, 0.0, 0.0).clamp(min=0) + eye[:, None]
        values = (candidates @ gram[:, None] * candidates).sum(-1)  # [M, k, F]
        v = best(candidates, values)  # [M, k, j]
        weights = (evenly(part)[:, None] @ v).squeeze(1)
        return Modulation(or_plain(weights, statistics.gram)), state
