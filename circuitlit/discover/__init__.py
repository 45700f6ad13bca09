"""Ways to find a circuit. Each returns `EdgeScores`, and nothing after it knows which one ran."""

from circuitlit.discover.clean_corrupted import clean_corrupted
from circuitlit.discover.eap import eap
from circuitlit.discover.eap_ig import eap_ig
from circuitlit.discover.eap_ig_activations import eap_ig_activations
from circuitlit.discover.gates import HardConcrete
from circuitlit.discover.information_flow import information_flow
from circuitlit.discover.learn import MaskLearner, Schedule, initial_log_alpha
from circuitlit.discover.mask_gradients import mask_gradients
from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.discover.random_scores import random_scores
from circuitlit.discover.relp import relp

__all__ = [
    "HardConcrete",
    "MaskLearner",
    "MaskedLoss",
    "Schedule",
    "clean_corrupted",
    "eap",
    "eap_ig",
    "eap_ig_activations",
    "information_flow",
    "initial_log_alpha",
    "mask_gradients",
    "random_scores",
    "relp",
]
