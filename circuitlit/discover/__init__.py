"""Ways to find a circuit. Each returns `EdgeScores`, and nothing after it knows which one ran.

Many functions have the names of their files; from this package the names mean the functions.
"""

from circuitlit.discover.acdc import acdc
from circuitlit.discover.clean_corrupted import clean_corrupted
from circuitlit.discover.eap import eap
from circuitlit.discover.eap_ig import eap_ig
from circuitlit.discover.eap_ig_activations import eap_ig_activations
from circuitlit.discover.edge_pruning_2024 import EdgePruning2024
from circuitlit.discover.exact import exact
from circuitlit.discover.gates import HardConcrete, SigmoidTopK, UniformGradient
from circuitlit.discover.information_flow import information_flow
from circuitlit.discover.learn import MaskLearner, Schedule
from circuitlit.discover.mask_gradients import mask_gradients
from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.discover.optimal_ablation import optimal_writers
from circuitlit.discover.random_scores import random_scores
from circuitlit.discover.relp import relp
from circuitlit.discover.start import initial_log_alpha

__all__ = [
    "EdgePruning2024",
    "HardConcrete",
    "MaskLearner",
    "MaskedLoss",
    "Schedule",
    "SigmoidTopK",
    "UniformGradient",
    "acdc",
    "clean_corrupted",
    "eap",
    "eap_ig",
    "eap_ig_activations",
    "exact",
    "information_flow",
    "initial_log_alpha",
    "mask_gradients",
    "optimal_writers",
    "random_scores",
    "relp",
]
