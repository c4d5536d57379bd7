"""How each modality fares: measured over a loader, recorded in training, told in a report."""

from modgrad.diagnostics.attribution import Attribution, attributions
from modgrad.diagnostics.competition import Competition, competition_strength
from modgrad.diagnostics.conflict import cosines, least_cosine, norm_shares
from modgrad.diagnostics.findings import Summary, summarise
from modgrad.diagnostics.gathered import gather_features
from modgrad.diagnostics.learning_speed import LearningSpeed
from modgrad.diagnostics.log import Log
from modgrad.diagnostics.overfitting import Overfitting, overfitting_to_generalization
from modgrad.diagnostics.phase import LearningOrder, learning_order
from modgrad.diagnostics.probes import Probes, linear_probes
from modgrad.diagnostics.report import Report, report
from modgrad.diagnostics.run import Run
from modgrad.diagnostics.utilization import (
    FeatureMeans,
    Utilization,
    conditional_utilization,
    fill_means,
)

__all__ = [
    "Attribution",
    "Competition",
    "FeatureMeans",
    "LearningOrder",
    "LearningSpeed",
    "Log",
    "Overfitting",
    "Probes",
    "Report",
    "Run",
    "Summary",
    "Utilization",
    "attributions",
    "competition_strength",
    "conditional_utilization",
    "cosines",
    "fill_means",
    "gather_features",
    "learning_order",
    "least_cosine",
    "linear_probes",
    "norm_shares",
    "overfitting_to_generalization",
    "report",
    "summarise",
]
