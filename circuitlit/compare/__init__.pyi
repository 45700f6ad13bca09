# What compare/__init__.py offers, each imported when it is first used.
from .difference import LABELS, CircuitDifference, Resampled, change_rates, circuit_difference
from .matrices import LowRank, MatrixChange, concentration, intruder_dimensions, matrix_change
from .nodes import MODES, node_modes
from .weight_figures import distribution, module_intruders
from .weights import PartChange, weight_changes

__all__ = [
    "LABELS",
    "MODES",
    "CircuitDifference",
    "LowRank",
    "MatrixChange",
    "PartChange",
    "Resampled",
    "change_rates",
    "circuit_difference",
    "concentration",
    "distribution",
    "intruder_dimensions",
    "matrix_change",
    "module_intruders",
    "node_modes",
    "weight_changes",
]
