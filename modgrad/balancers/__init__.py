"""Balancers, one file a method. A new one is its file, a line here, and a row in tests/cases.py."""

from modgrad.balancers.agm import AGM
from modgrad.balancers.aligned_mtl import AlignedMTL
from modgrad.balancers.base import Balancer, Modulation, NoState, Statistics
from modgrad.balancers.cagrad import CAGrad
from modgrad.balancers.conditional_learning_speed import (
    ConditionalLearningSpeed,
    RandomRebalancing,
)
from modgrad.balancers.dwa import DWA
from modgrad.balancers.equal_norms import EqualNorms
from modgrad.balancers.fixed import FixedLossWeights, FixedWeights
from modgrad.balancers.gradient_blending import GradientBlending, blending_weights
from modgrad.balancers.gradnorm import GradNorm
from modgrad.balancers.mgda import MGDA
from modgrad.balancers.mmpareto import MMPareto
from modgrad.balancers.ogm import OGM
from modgrad.balancers.pcgrad import PCGrad
from modgrad.balancers.pmr import PMR
from modgrad.balancers.uncertainty import UncertaintyWeighting
from modgrad.balancers.upgrad import UPGrad
from modgrad.balancers.wrappers import Between, Clipped, Every, Smoothed

METHODS = (
    AGM,
    AlignedMTL,
    CAGrad,
    ConditionalLearningSpeed,
    DWA,
    EqualNorms,
    FixedLossWeights,
    FixedWeights,
    GradNorm,
    GradientBlending,
    MGDA,
    MMPareto,
    OGM,
    PMR,
    PCGrad,
    RandomRebalancing,
    UPGrad,
    UncertaintyWeighting,
)
WRAPPERS = (Between, Clipped, Every, Smoothed)

__all__ = [
    "AGM",
    "DWA",
    "METHODS",
    "MGDA",
    "OGM",
    "PMR",
    "WRAPPERS",
    "AlignedMTL",
    "Balancer",
    "Between",
    "CAGrad",
    "Clipped",
    "ConditionalLearningSpeed",
    "EqualNorms",
    "Every",
    "FixedLossWeights",
    "FixedWeights",
    "GradNorm",
    "GradientBlending",
    "MMPareto",
    "Modulation",
    "NoState",
    "PCGrad",
    "RandomRebalancing",
    "Smoothed",
    "Statistics",
    "UPGrad",
    "UncertaintyWeighting",
    "blending_weights",
]
