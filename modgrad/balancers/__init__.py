"""Balancers, one file a method. A new one is its file, a line here, and a row in tests/cases.py."""

from modgrad.balancers.base import Balancer, Modulation, NoState, Statistics
from modgrad.balancers.fixed import FixedWeights
from modgrad.balancers.ogm import OGM
from modgrad.balancers.wrappers import Between, Clipped, Every, Smoothed

METHODS = (FixedWeights, OGM)
WRAPPERS = (Between, Clipped, Every, Smoothed)

__all__ = [
    "METHODS",
    "OGM",
    "WRAPPERS",
    "Balancer",
    "Between",
    "Clipped",
    "Every",
    "FixedWeights",
    "Modulation",
    "NoState",
    "Smoothed",
    "Statistics",
]
