"""Balancers, one file a method. A new one is its file, a line here, and a row in tests/cases.py."""

from modgrad.balancers.aligned_mtl import AlignedMTL
from modgrad.balancers.base import Balancer, Modulation, NoState, Statistics
from modgrad.balancers.cagrad import CAGrad
from modgrad.balancers.dwa import DWA
from modgrad.balancers.fixed import FixedWeights
from modgrad.balancers.gradnorm import GradNorm
from modgrad.balancers.mgda import MGDA
from modgrad.balancers.mmpareto import MMPareto
from modgrad.balancers.ogm import OGM
from modgrad.balancers.pcgrad import PCGrad
from modgrad.balancers.uncertainty import UncertaintyWeighting
from modgrad.balancers.upgrad import UPGrad
from modgrad.balancers.wrappers import Between, Clipped, Every, Smoothed

METHODS = (
    AlignedMTL,
    CAGrad,
    DWA,
    FixedWeights,
    GradNorm,
    MGDA,
    MMPareto,
    OGM,
    PCGrad,
    UPGrad,
    UncertaintyWeighting,
)
WRAPPERS = (Between, Clipped, Every, Smoothed)

__all__ = [
    "DWA",
    "METHODS",
    "MGDA",
    "OGM",
    "WRAPPERS",
    "AlignedMTL",
    "Balancer",
    "Between",
    "CAGrad",
    "Clipped",
    "Every",
    "FixedWeights",
    "GradNorm",
    "MMPareto",
    "Modulation",
    "NoState",
    "PCGrad",
    "Smoothed",
    "Statistics",
    "UPGrad",
    "UncertaintyWeighting",
]
