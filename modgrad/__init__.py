"""Fused gradient balancing for multimodal training."""

from importlib.metadata import version

from modgrad import backends, balancers, datasets
from modgrad.autograd import scale_backward
from modgrad.backends import BackendUnavailableError
from modgrad.balancers import (
    DWA,
    MGDA,
    OGM,
    AlignedMTL,
    Between,
    CAGrad,
    Clipped,
    Every,
    FixedWeights,
    GradNorm,
    MMPareto,
    PCGrad,
    Smoothed,
    UncertaintyWeighting,
    UPGrad,
)
from modgrad.late_fusion import late_fusion_logits
from modgrad.losses import (
    BlendedCrossEntropies,
    CrossEntropies,
    LateFusion,
    blended_cross_entropy,
    late_fusion_head,
    modality_cross_entropy,
)
from modgrad.modalities import Modalities
from modgrad.modulator import Modulator
from modgrad.ops import combine_, group_gram, group_sq_norms, modality_scores, modulate_
from modgrad.optimizer import ModulatedOptimizer, attach, detach
from modgrad.records import LastStep

__version__ = version("modgrad")

__all__ = [
    "DWA",
    "MGDA",
    "OGM",
    "AlignedMTL",
    "BackendUnavailableError",
    "Between",
    "BlendedCrossEntropies",
    "CAGrad",
    "Clipped",
    "CrossEntropies",
    "Every",
    "FixedWeights",
    "GradNorm",
    "LastStep",
    "LateFusion",
    "MMPareto",
    "Modalities",
    "ModulatedOptimizer",
    "Modulator",
    "PCGrad",
    "Smoothed",
    "UPGrad",
    "UncertaintyWeighting",
    "attach",
    "backends",
    "balancers",
    "blended_cross_entropy",
    "combine_",
    "datasets",
    "detach",
    "group_gram",
    "group_sq_norms",
    "late_fusion_head",
    "late_fusion_logits",
    "modality_cross_entropy",
    "modality_scores",
    "modulate_",
    "scale_backward",
]
