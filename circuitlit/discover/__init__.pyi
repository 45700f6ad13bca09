# What discover/__init__.py offers, each imported when it is first used.
from .edge_pruning_2024 import EdgePruning2024
from .gates import HardConcrete, SigmoidTopK, UniformGradient
from .learn import MaskLearner
from .masked_loss import MaskedLoss
from .methods.acdc import acdc
from .methods.clean_corrupted import clean_corrupted
from .methods.eap import eap
from .methods.eap_ig import eap_ig
from .methods.eap_ig_activations import eap_ig_activations
from .methods.exact import exact
from .methods.information_flow import information_flow
from .methods.mask_gradients import mask_gradients
from .methods.random_scores import random_scores
from .methods.relp import relp
from .optimal_ablation import optimal_writers
from .schedule import Schedule
from .start import initial_log_alpha

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
