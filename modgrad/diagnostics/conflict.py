"""Where losses pull an encoder apart, and which encoder gets how much gradient.

Shape letters: M modalities, K losses.
"""

import torch
from torch import Tensor


def cosines(gram: Tensor) -> Tensor:
    """Cosines between the losses' gradients in each modality, [..., K, K] like the gram.

        cos_kl = G_kl / sqrt(G_kk G_ll)

    In [-1, 1]; 1 on the diagonal. A gradient that is 0, or not finite, has cosine 0 with all.

    Raises:
        ValueError: the gram is not square.
    """
    if gram.dim() < 2 or gram.shape[-1] != gram.shape[-2]:
        raise ValueError(f"`gram` has shape {list(gram.shape)}, allowed: [..., K, K]")
    norms = gram.double().diagonal(dim1=-2, dim2=-1).sqrt()
    # one norm after the other: their product could overflow
    out = gram.double() / norms[..., :, None] / norms[..., None, :]
    return torch.where(out.isfinite(), out, 0.0).clamp(-1, 1)


def least_cosine(gram: Tensor) -> Tensor:
    """The smallest cosine between two losses' gradients in each modality, [...] of [..., K, K].

    Over the pairs of losses that both reach it; 1 where fewer than two do. Below 0 they conflict.
    """
    reaches = gram.diagonal(dim1=-2, dim2=-1) > 0
    both = reaches[..., :, None] & reaches[..., None, :]
    return torch.where(both, cosines(gram), 1.0).amin((-2, -1))


def norm_shares(sq_norms: Tensor) -> Tensor:
    """Each modality's part of the gradient's norm, |g_m| / sum_n |g_n|; squared norms [..., M].

    They sum to 1, or are all 0 where every gradient is 0 or one is not finite.
    """
    if sq_norms.dim() < 1:
        raise ValueError("`sq_norms` is a scalar, allowed: [..., M]")
    norms = sq_norms.double().sqrt()
    shares = norms / norms.sum(-1, keepdim=True)
    usable = shares.isfinite().all(-1, keepdim=True)
    return torch.where(usable, shares, 0.0)
