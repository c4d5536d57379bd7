"""Analysable models of modality competition, their predictions, and training to compare."""

from modgrad.theory.competition import LateFusion
from modgrad.theory.deep_linear import DeepLinear
from modgrad.theory.sparse_coding import Samples, SparseCoding
from modgrad.theory.statistics import SecondOrder
from modgrad.theory.trajectory import Trajectory
from modgrad.theory.unimodal_phase import UnimodalPhase, predict_unimodal_phase
from modgrad.theory.winners import Winners, alignment, error, feature_strength, predict_winners

__all__ = [
    "DeepLinear",
    "LateFusion",
    "Samples",
    "SecondOrder",
    "SparseCoding",
    "Trajectory",
    "UnimodalPhase",
    "Winners",
    "alignment",
    "error",
    "feature_strength",
    "predict_unimodal_phase",
    "predict_winners",
]
