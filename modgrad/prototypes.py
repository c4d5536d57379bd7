"""Class prototypes in feature space: what each modality alone can tell, without a head of its own.

Shape letters: M modalities, B batch, C classes, D features.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

# Squared distances below 1e-12 count as that: the root has no gradient there instead of an
# infinite one. Distances of 1e-6 are rounding for float32 features of length 10 and more.
LEAST_SQ_DISTANCE = 1e-12


class PrototypeOutput(NamedTuple):
    """What the prototypes say of a batch."""

    losses: dict[str, Tensor]
    """[] by modality: prototypical cross entropy; its gradient reaches the features."""
    scores: Tensor
    """float32 [M]: mean probability of the true class; what ``observe(scores=…)`` takes."""
    entropies: dict[str, Tensor]
    """[] by modality: mean entropy of the probabilities, in nats; its gradient, too."""


class Prototypes(nn.Module):
    """A mean feature of each class and modality, and the classification by distance to them.

        c_m[k]    = (1 - momentum) mean of h_m over class k in the last pass + momentum c_m[k]
        p_m(k | x) = softmax over k of -|h_m(x) - c_m[k]|
        loss_m    = mean over the batch of -log p_m(y),   score_m = mean of p_m(y)

    Once an epoch, ``accumulate`` some batches of features, as from a model in evaluation, and
    ``refresh``. The prototypes are buffers, constants in every loss. The first mean of a class is
    taken as it is; a class that a pass lacks keeps its prototype, 0 before its first. Before the
    first refresh probabilities are therefore even and gradients 0.

    Distances and means are computed in float64, where neither autocast nor TF32 rounds them: the
    cost is that of two [B, D] x [D, C] products a modality. Nothing is read on the host.

    Args:
        num_classes: C, >= 1.
        features: the width D_m of each modality, in the order of ``Modalities``.
        momentum: weight of the old prototype, in [0, 1).

    Source: Fan et al., PMR: Prototypical Modal Rebalance for Multimodal Learning, CVPR 2023.
    """

    def __init__(
        self, num_classes: int, features: Mapping[str, int], momentum: float = 0.2
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"`num_classes` is {num_classes}, allowed: >= 1")
        if not features:
            raise ValueError("`features` is empty, allowed: a width for each modality")
        for name, width in features.items():
            if width < 1:
                raise ValueError(f"`features[{name!r}]` is {width}, allowed: >= 1")
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` is {momentum}, allowed: [0, 1)")
        self.num_classes, self.features, self.momentum = num_classes, dict(features), momentum
        for name, width in features.items():
            self.register_buffer(f"prototypes_{name}", torch.zeros(num_classes, width))
            self.register_buffer(f"seen_{name}", torch.zeros(num_classes, dtype=torch.bool))
        # no buffers: .half() would round sums, and DDP would overwrite them with those of rank 0
        self._sums: dict[str, Tensor] = {}

    def __getitem__(self, modality: str) -> Tensor:
        """[C, D_m]"""
        return self.get_buffer(f"prototypes_{modality}")

    @torch.no_grad()
    def accumulate(self, features: Mapping[str, Tensor], targets: Tensor) -> None:
        """Add a batch to the means that the next ``refresh`` takes.

        Left out are samples whose features of a modality are not finite, for that modality, and
        those whose target is not in [0, C).

        Args:
            features: [B, D_m] by modality.
            targets: the classes, [B].
        """
        self._check(features, targets)
        member = targets[:, None] == torch.arange(self.num_classes, device=targets.device)
        for name in self.features:
            h = F.pad(features[name].double(), (0, 1), value=1.0)  # the last column counts
            h = torch.where(h.isfinite().all(1, keepdim=True), h, 0.0)
            # a product, since index_add adds in any order on a GPU
            total = member.double().T @ h
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    @torch.no_grad()
    def refresh(self, process_group: dist.ProcessGroup | None = None) -> None:
        """Take the means of what was accumulated since the last call, over all ranks."""
        for name, width in self.features.items():
            old, seen = self[name], self.get_buffer(f"seen_{name}")
            total = self._sums.pop(name, None)
            if total is None:  # a rank without samples takes part in the sum
                total = old.new_zeros(self.num_classes, width + 1, dtype=torch.float64)
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(total, group=process_group)
            count = total[:, -1:]
            mean = total[:, :-1] / count.clamp(min=1)
            new = torch.where(seen[:, None], torch.lerp(mean, old.double(), self.momentum), mean)
            old.copy_(torch.where(count > 0, new, old))
            seen.logical_or_(count[:, 0] > 0)

    def forward(self, features: Mapping[str, Tensor], targets: Tensor) -> PrototypeOutput:
        """Losses, scores and entropies of a batch; targets are in [0, C)."""
        self._check(features, targets)
        targets = targets.long()
        losses, scores, entropies = {}, [], {}
        for name in self.features:
            h = features[name]
            log_p = (-_distances(h.double(), self[name].double())).log_softmax(1)
            p = log_p.exp()
            dtype = torch.promote_types(h.dtype, torch.float32)
            losses[name] = F.nll_loss(log_p, targets).to(dtype)
            entropies[name] = -(p * log_p).sum(1).mean().to(dtype)
            scores.append(p.detach().gather(1, targets[:, None]).mean())
        return PrototypeOutput(losses, torch.stack(scores).float(), entropies)

    def _check(self, features: Mapping[str, Tensor], targets: Tensor) -> None:
        if set(features) != set(self.features):
            raise ValueError(f"`features` has {sorted(features)}, allowed: {sorted(self.features)}")
        if targets.dim() != 1 or len(targets) == 0 or targets.is_floating_point():
            found = f"{targets.dtype} {list(targets.shape)}"
            raise ValueError(f"`targets` is {found}, allowed: integers [B], B >= 1")
        for name, width in self.features.items():
            shape = [len(targets), width]
            if list(features[name].shape) != shape:
                raise ValueError(
                    f"`features[{name!r}]` has shape {list(features[name].shape)}, allowed: {shape}"
                )

    def extra_repr(self) -> str:
        return f"{self.num_classes}, {self.features}, momentum={self.momentum}"


def _distances(h: Tensor, c: Tensor) -> Tensor:
    """[B, C] from [B, D] and [C, D]: without the [B, C, D] differences, so in float64 only."""
    squares = h.square().sum(1, keepdim=True) - 2 * h @ c.T + c.square().sum(1)
    return squares.clamp(min=LEAST_SQ_DISTANCE).sqrt()
