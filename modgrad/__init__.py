"""Fused gradient balancing for multimodal training."""

from importlib.metadata import version

from modgrad import backends, balancers, datasets
from modgrad.autograd import scale_backward
from modgrad.backends import BackendUnavailableError
from modgrad.balancers import OGM, Between, Clipped, Every, FixedWeights, Smoothed
from modgrad.late_fusion import late_fusion_logits
from modgrad.modalities import Modalities
from modgrad.modulator import LastStep, Modulator
from modgrad.ops import group_sq_norms, modality_scores, modulate_
from modgrad.optimizer import ModulatedOptimizer, attach, detach

__version__ = version("modgrad")

__all__ = [
    "OGM",
    "BackendUnavailableError",
    "Between",
    "Clipped",
    "Every",
    "FixedWeights",
    "LastStep",
    "Modalities",
    "ModulatedOptimizer",
    "Modulator",
    "Smoothed",
    "attach",
    "backends",
    "balancers",
    "datasets",
    "detach",
    "group_sq_norms",
    "late_fusion_logits",
    "modality_scores",
    "modulate_",
    "scale_backward",
]
