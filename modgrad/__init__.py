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
from modgrad.modalities import Modalities
from modgrad.modulator import Modulator
from modgrad.ops import combine_, group_gram, group_sq_norms, modality_scores, modulate_
from modgrad.optimizer import ModulatedOptimizer, attach, detach
from modgrad.records import LastStep
from modgrad.updates import modulated_adam_, modulated_adamw_, modulated_sgd_

__version__ = version("modgrad")

__all__ = [
    "DWA",
    "MGDA",
    "OGM",
    "AlignedMTL",
    "BackendUnavailableError",
    "Between",
    "CAGrad",
    "Clipped",
    "Every",
    "FixedWeights",
    "GradNorm",
    "LastStep",
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
    "combine_",
    "datasets",
    "detach",
    "group_gram",
    "group_sq_norms",
    "late_fusion_logits",
    "modality_scores",
    "modulate_",
    "modulated_adam_",
    "modulated_adamw_",
    "modulated_sgd_",
    "scale_backward",
]
