"""Unimodal logits from a late-fusion head."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def late_fusion_logits(
    features: Mapping[str, Tensor], head: nn.Linear | Mapping[str, nn.Linear] | nn.ModuleDict
) -> dict[str, Tensor]:
    """The share of each modality in the joint logits of a linear head; the shares sum to them.

        concatenation   z_m = W_m h_m + b / M     W = [W_1 … W_M], in the order of `features`
        sum of features z_m = W h_m + b / M
        sum of heads    z_m = W_m h_m + b_m

    Args:
        features: M tensors [B, D_m], in the order in which they were concatenated.
        head: a Linear over the concatenated features (in_features = sum of D_m) or over their sum
            (in_features = D_m, all equal), or one Linear per modality.

    Returns:
        M tensors [B, C], by modality.

    Source: Peng et al., Balanced Multimodal Learning via On-the-fly Gradient Modulation, CVPR 2022,
    eq. 8, and the sum fusion of its released code, whose training adds the whole bias to each
    modality where its evaluation adds half; here it is always divided.
    """
    if isinstance(head, nn.ModuleDict):
        head = dict(head.items())  # type: ignore[arg-type]
    if isinstance(head, Mapping):
        if set(head) != set(features):
            raise ValueError(f"`head` has {sorted(head)}, allowed: {sorted(features)}")
        return {name: head[name](h) for name, h in features.items()}
    if not isinstance(head, nn.Linear):
        raise TypeError(f"`head` is {type(head).__name__}, allowed: nn.Linear or a mapping of them")
    logits = shares(list(features.values()), head.weight, head.bias)
    return dict(zip(features, logits, strict=True))


def shares(features: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    """The logits of each modality by one head: ``z_m = h_m W_m^T + b / M``, M tensors [B, C]."""
    widths = [h.shape[-1] for h in features]
    in_features = weight.shape[1]
    if in_features == sum(widths):
        blocks = weight.split(widths, dim=1)
    elif all(width == in_features for width in widths):
        blocks = (weight,) * len(widths)
    else:
        raise ValueError(
            f"`head` takes {in_features} features, allowed: {sum(widths)} (concatenation)"
            f" or the width of every modality (sum); the widths are {widths}"
        )
    part = None if bias is None else bias / len(widths)
    return [F.linear(h, block, part) for h, block in zip(features, blocks, strict=True)]
