"""Ways to find a circuit. Each returns `EdgeScores`, and nothing after it knows which one ran."""

from circuitlit.discover.edge_pruning_2024 import EdgePruning2024
from circuitlit.discover.gates import HardConcrete, SigmoidTopK, UniformGradient
from circuitlit.discover.learn import MaskLearner, Schedule
from circuitlit.discover.mask_gradients import mask_gradients
from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.discover.optimal_ablation import optimal_writers
from circuitlit.discover.start import initial_log_alpha

__all__ = [
    "EdgePruning2024",
    "HardConcrete",
    "MaskLearner",
    "MaskedLoss",
    "Schedule",
    "SigmoidTopK",
    "UniformGradient",
    "initial_log_alpha",
    "mask_gradients",
    "optimal_writers",
]
