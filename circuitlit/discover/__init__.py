"""Ways to find a circuit. Each returns `EdgeScores`, and nothing after it knows which one ran."""

from circuitlit.discover.acdc import acdc
from circuitlit.discover.exact import exact
from circuitlit.discover.gates import HardConcrete
from circuitlit.discover.learn import MaskLearner, Schedule, initial_log_alpha
from circuitlit.discover.mask_gradients import mask_gradients
from circuitlit.discover.masked_loss import MaskedLoss

__all__ = [
    "HardConcrete",
    "MaskLearner",
    "MaskedLoss",
    "Schedule",
    "acdc",
    "exact",
    "initial_log_alpha",
    "mask_gradients",
]
