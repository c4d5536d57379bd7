"""What modgrad is compared with: the papers' loops, and the best that stock PyTorch offers."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def loop_group_sq_norms(tensors: Sequence[Tensor], group: Sequence[int], num_groups: int) -> Tensor:
    """A norm and a host read per tensor, as the released code of this field does."""
    sums = [0.0] * num_groups
    for tensor, g in zip(tensors, group, strict=True):
        sums[g] += tensor.norm().item() ** 2
    return torch.tensor(sums)


def foreach_group_sq_norms(tensors: Sequence[Tensor], index: Tensor, num_groups: int) -> Tensor:
    """``_foreach_norm`` in float32, then the sums per group: no host read; ``index`` is ready."""
    norms = torch.stack(torch._foreach_norm(list(tensors), dtype=torch.float32))
    return norms.new_zeros(num_groups).index_add_(0, index, norms.square())


def loop_modulate_(grads: Sequence[Tensor], group: Sequence[int], weights: Tensor) -> None:
    """A multiplication by a host number per tensor."""
    for grad, g in zip(grads, group, strict=True):
        grad.mul_(weights[g].item())


def foreach_modulate_(by_group: Sequence[Sequence[Tensor]], weights: Tensor) -> None:
    """``_foreach_mul_`` with a device scalar per group; the lists are made before."""
    for tensors, weight in zip(by_group, weights.unbind(), strict=True):
        torch._foreach_mul_(list(tensors), weight)


def by_group(
    tensors: Sequence[Tensor], group: Sequence[int], num_groups: int
) -> list[list[Tensor]]:
    """The tensors of each group."""
    out: list[list[Tensor]] = [[] for _ in range(num_groups)]
    for tensor, g in zip(tensors, group, strict=True):
        out[g].append(tensor)
    return out


def loop_group_gram(
    per_loss: Sequence[Sequence[Tensor]], group: Sequence[int], num_groups: int
) -> Tensor:
    """An inner product and a host read per pair of losses and tensor."""
    K = len(per_loss)
    out = torch.zeros(num_groups, K, K, dtype=torch.float64)
    for k in range(K):
        for j in range(K):
            for p, g in enumerate(group):
                out[g, k, j] += torch.sum(per_loss[k][p] * per_loss[j][p]).item()
    return out


def stacked(per_loss: Sequence[Sequence[Tensor]], matrix: Tensor) -> Tensor:
    """The gradients of K losses flattened into the rows of a [K, N] matrix, made before."""
    for grads, row in zip(per_loss, matrix, strict=True):
        torch.cat([g.flatten() for g in grads], out=row)
    return matrix


def stacked_group_gram(
    per_loss: Sequence[Sequence[Sequence[Tensor]]], matrices: Sequence[Tensor]
) -> Tensor:
    """Each group's matrix times its transpose."""
    pairs = zip(per_loss, matrices, strict=True)
    filled = [stacked(grads, matrix) for grads, matrix in pairs]
    return torch.stack([matrix @ matrix.T for matrix in filled])


def foreach_combine_(
    out: Sequence[Sequence[Tensor]],
    per_loss: Sequence[Sequence[Sequence[Tensor]]],
    weights: Tensor,
    spare: Sequence[Sequence[Tensor]],
) -> None:
    """By group: a copy and a product for each loss, and sums of them; ``spare`` is like ``out``."""
    for g, targets in enumerate(out):
        for k, weight in enumerate(weights[g].unbind()):
            scaled = list(spare[g] if k else targets)
            torch._foreach_copy_(scaled, list(per_loss[g][k]))
            torch._foreach_mul_(scaled, weight)
            if k:
                torch._foreach_add_(list(targets), scaled)


def papers_scores(logits: Sequence[Tensor], targets: Tensor) -> list[Tensor]:
    """A softmax and a host read per sample, as OGM-GE's ``main.py`` is written."""
    return [
        sum(F.softmax(x, dim=1)[i][targets[i]] for i in range(len(x)))  # type: ignore[misc]
        for x in logits
    ]


def stacked_scores(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    """One softmax over all modalities and one gather."""
    probabilities = torch.stack([x.detach() for x in logits]).softmax(dim=2)
    index = targets[None, :, None].expand(len(logits), -1, 1)
    return probabilities.gather(2, index).mean((1, 2))


def papers_ogm(
    encoders: Sequence[nn.Module], logits: Sequence[Tensor], targets: Tensor, alpha: float
) -> None:
    """OGM by a loop over samples, a host read for each ratio, and a loop over parameters."""
    scores = papers_scores([x.detach() for x in logits], targets)
    for m, encoder in enumerate(encoders):
        others = [scores[m] / score for n, score in enumerate(scores) if n != m]
        ratio = (sum(others[1:], others[0]) / len(others)).item()
        coefficient = 1.0
        if ratio > 1:
            coefficient = 1 - torch.tanh(torch.tensor(alpha * ratio)).item()
        for p in encoder.parameters():
            if p.grad is not None:
                p.grad *= coefficient


def ogm_weights(scores: Tensor, alpha: float) -> Tensor:
    """OGM's weights without a host read."""
    rho = (scores[:, None] / scores[None, :]).sum(1).sub(1) / (len(scores) - 1)
    return torch.where(rho > 1, 1 - torch.tanh(alpha * rho), 1.0)


def foreach_ogm(
    gradients: Sequence[list[Tensor]], logits: Sequence[Tensor], targets: Tensor, alpha: float
) -> None:
    """OGM without a host read: vectorised scores, one ``_foreach_mul_`` per modality."""
    foreach_modulate_(gradients, ogm_weights(stacked_scores(logits, targets), alpha))


class PapersAGM:
    """AGM of two modalities: a loop over samples, arithmetic on the host, hooks that scale."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.steps, self.means = 0, [0.0, 0.0]

    def __call__(self, responses: Sequence[Tensor], targets: Tensor) -> Tensor:
        """The responses' sum, whose gradient reaches each of them times its coefficient."""
        losses = []
        for x in responses:
            p = F.softmax(x.detach(), dim=1)
            logs = [torch.log(p[i][targets[i]].clamp(min=1e-8)) for i in range(len(p))]
            losses.append(-sum(logs).item() / len(p))  # type: ignore[union-attr]
        scaled = []
        for m, x in enumerate(responses):
            ahead = math.exp(losses[1 - m] - losses[m])
            before = math.exp(self.means[1 - m] - self.means[m])
            coefficient = math.exp(self.alpha * min(before - ahead, 10))
            scaled.append(x.view_as(x))
            scaled[m].register_hook(lambda grad, c=coefficient: grad * c)
        self.steps += 1
        self.means = [a + (b - a) / self.steps for a, b in zip(self.means, losses, strict=True)]
        return scaled[0] + scaled[1]


def padded_responses(
    model: nn.Module, forward: Callable[[set[str]], Tensor], names: Sequence[str]
) -> list[Tensor]:
    """AGM's responses of two modalities, by one forward pass in train mode and three in eval mode.

    The last of them, of zeros alone, is made by the released code and not used.
    """
    both = forward(set(names))
    model.eval()
    first, second, _ = forward({names[0]}), forward({names[1]}), forward(set())
    model.train()
    return [0.5 * (both - second + first), 0.5 * (both - first + second)]


class PapersSpeeds:
    """Conditional learning speeds: two norms and two host reads for every parameter."""

    def __init__(self, groups: Mapping[str, Sequence[Tensor]], fusion: Mapping[str, str]) -> None:
        self.groups, self.fusion = groups, fusion
        self.sums = dict.fromkeys(groups, 0.0)
        self.speeds: list[float] = []

    def __call__(self) -> None:
        for name, parameters in self.groups.items():
            of_grads = of_weights = 0.0
            for p in parameters:
                if p.grad is not None:
                    of_grads += p.grad.norm().item() ** 2
                    of_weights += p.norm().item() ** 2
            self.sums[name] += of_grads / of_weights
        self.speeds = [math.log10(self.sums[f] / self.sums[b]) for b, f in self.fusion.items()]
