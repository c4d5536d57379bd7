"""Fused gradient balancing for multimodal training."""

from importlib.metadata import version

from modgrad import backends, balancers, datasets, diagnostics, theory
from modgrad.amp import GradScaler
from modgrad.autograd import scale_backward
from modgrad.backends import BackendUnavailableError
from modgrad.backends.retained import RetainedList
from modgrad.balance import Balanced, balance_, rule_weights
from modgrad.balancers import (
    AGM,
    DWA,
    MGDA,
    OGM,
    PMR,
    AlignedMTL,
    Between,
    CAGrad,
    Clipped,
    ConditionalLearningSpeed,
    EqualNorms,
    Every,
    FixedLossWeights,
    FixedWeights,
    GradientBlending,
    GradNorm,
    MMPareto,
    PCGrad,
    RandomRebalancing,
    Smoothed,
    UncertaintyWeighting,
    UPGrad,
)
from modgrad.blending import BlendEstimate, BlendEstimator
from modgrad.late_fusion import late_fusion_logits
from modgrad.losses import (
    BalancedCrossEntropies,
    BlendedCrossEntropies,
    CrossEntropies,
    LateFusion,
    balanced_cross_entropy,
    blended_cross_entropy,
    late_fusion_head,
    modality_cross_entropy,
)
from modgrad.mmtm import MMTM
from modgrad.modalities import Modalities
from modgrad.modulator import Modulator
from modgrad.ops import combine_, group_gram, group_sq_norms, modality_scores, modulate_
from modgrad.optimizer import ModulatedOptimizer, attach, detach
from modgrad.prototypes import PrototypeOutput, Prototypes
from modgrad.records import LastStep
from modgrad.responses import (
    late_fusion_responses,
    masked,
    mono_modal_responses,
    present_mask,
)
from modgrad.rules import Rule
from modgrad.updates import modulated_adam_, modulated_adamw_, modulated_sgd_

__version__ = version("modgrad")

__all__ = [
    "AGM",
    "DWA",
    "MGDA",
    "MMTM",
    "OGM",
    "PMR",
    "AlignedMTL",
    "BackendUnavailableError",
    "Balanced",
    "BalancedCrossEntropies",
    "Between",
    "BlendEstimate",
    "BlendEstimator",
    "BlendedCrossEntropies",
    "CAGrad",
    "Clipped",
    "ConditionalLearningSpeed",
    "CrossEntropies",
    "EqualNorms",
    "Every",
    "FixedLossWeights",
    "FixedWeights",
    "GradNorm",
    "GradScaler",
    "GradientBlending",
    "LastStep",
    "LateFusion",
    "MMPareto",
    "Modalities",
    "ModulatedOptimizer",
    "Modulator",
    "PCGrad",
    "PrototypeOutput",
    "Prototypes",
    "RandomRebalancing",
    "RetainedList",
    "Rule",
    "Smoothed",
    "UPGrad",
    "UncertaintyWeighting",
    "attach",
    "backends",
    "balance_",
    "balanced_cross_entropy",
    "balancers",
    "blended_cross_entropy",
    "combine_",
    "datasets",
    "detach",
    "diagnostics",
    "group_gram",
    "group_sq_norms",
    "late_fusion_head",
    "late_fusion_logits",
    "late_fusion_responses",
    "masked",
    "modality_cross_entropy",
    "modality_scores",
    "modulate_",
    "modulated_adam_",
    "modulated_adamw_",
    "modulated_sgd_",
    "mono_modal_responses",
    "present_mask",
    "rule_weights",
    "scale_backward",
    "theory",
]
