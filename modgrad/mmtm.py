"""Multimodal transfer module: branches that gate each other's feature maps, or a stored mean."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class MMTM(nn.Module):
    """Squeeze and excitation across M branches, whose gates a re-balancing step can cut off.

        s_m = global average of x_m              [B, C_m]
        h   = relu(W [s_1; ...; s_M] + b)        [B, int(2 sum C_m / ratio)]
        g_m = sigmoid(W_m h + b_m)               [B, C_m]
        y_m = g_m x_m                            channel by channel

    With ``branch`` = i, the gates of branch i are their mean over the training so far, without a
    gradient: y_i depends on x_i alone, and the excitation of branch i gets a gradient of 0. The
    other branches are computed as ever. The branch is chosen on the device.

    The means are over all samples of regular forwards in training mode; re-balancing steps and
    evaluation leave them alone, as do batches whose gates are not finite. Before the first they are
    1/2. They are buffers, in checkpoints and moved with the module. Under DistributedDataParallel
    every rank has those of rank 0, which are of its own samples, as with batch norm
    (``broadcast_buffers=True``, the default).

    Args:
        channels: C_m of each branch, at least two, in the order of the balancer's ``fusion``.
        ratio: > 0, at most 2 sum C_m.

    Source: Joze et al., MMTM: Multimodal Transfer Module for CNN Fusion, CVPR 2020, without their
    factor 2 on the gates; Wu et al., Characterizing and Overcoming the Greedy Nature of Learning
    in Multi-modal Deep Neural Networks, ICML 2022.
    """

    means: Tensor
    count: Tensor

    def __init__(self, channels: Mapping[str, int], ratio: float = 4) -> None:
        super().__init__()
        if len(channels) < 2 or min(channels.values()) < 1:
            raise ValueError(
                f"`channels` is {dict(channels)}, allowed: at least 2 branches of >= 1"
            )
        total = sum(channels.values())
        if not 0 < ratio <= 2 * total:
            raise ValueError(f"`ratio` is {ratio}, allowed: (0, {2 * total}], twice the channels")
        hidden = int(2 * total / ratio)
        self.channels = dict(channels)
        self.squeeze = nn.Linear(total, hidden)
        self.excite = nn.ModuleDict({name: nn.Linear(hidden, c) for name, c in channels.items()})
        self.register_buffer("means", torch.full((total,), 0.5))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(
        self, features: Mapping[str, Tensor], branch: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The gated features.

        Args:
            features: of each branch, [B, C_m, ...] with any number of spatial dimensions.
            branch: int64 [] on the features' device: the index of the branch to re-balance, -1 for
                none, as in ``optimizer.modulator.state.branch``. None means none: give it in
                training only.

        Raises:
            ValueError: branches are missing or too many, a feature map has other channels.
        """
        if set(features) != set(self.channels):
            raise ValueError(f"`features` has {sorted(features)}, allowed: {sorted(self.channels)}")
        for name, c in self.channels.items():
            if features[name].dim() < 2 or features[name].shape[1] != c:
                found = list(features[name].shape)
                raise ValueError(f"`features[{name!r}]` has shape {found}, allowed: [B, {c}, ...]")
        pooled = [features[name][..., None].flatten(2).mean(2) for name in self.channels]
        hidden = self.squeeze(torch.cat(pooled, 1)).relu()
        gates = {name: layer(hidden).sigmoid() for name, layer in self.excite.items()}
        if self.training:
            self._remember(torch.cat(list(gates.values()), 1).detach(), branch)
        if branch is not None:
            means = self.means.split(list(self.channels.values()))
            for i, (name, gate) in enumerate(gates.items()):
                gates[name] = torch.where(branch == i, means[i].to(gate.dtype), gate)
        return {
            name: x * gates[name].reshape(*x.shape[:2], *[1] * (x.dim() - 2))
            for name, x in ((name, features[name]) for name in self.channels)
        }

    @torch.no_grad()
    def _remember(self, gates: Tensor, branch: Tensor | None) -> None:
        """Count the gates [B, sum C_m] of a regular forward into the means."""
        here = gates.to(self.means.dtype).mean(0)
        counted = here.isfinite().all()
        if branch is not None:
            counted = counted & (branch < 0)
        count = self.count + len(gates)
        means = self.means + (here - self.means) * (len(gates) / count.double())
        self.means.copy_(torch.where(counted, means, self.means))
        self.count.copy_(torch.where(counted, count, self.count))
