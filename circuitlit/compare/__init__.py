"""What differs between two models of one graph: their circuits, edge by edge, and their weights, head by head."""

from circuitlit.compare.difference import (
    LABELS,
    CircuitDifference,
    Resampled,
    change_rates,
    circuit_difference,
)
from circuitlit.compare.matrices import LowRank, MatrixChange, concentration, intruder_dimensions, matrix_change
from circuitlit.compare.nodes import MODES, node_modes
from circuitlit.compare.weight_figures import distribution, module_intruders
from circuitlit.compare.weights import PartChange, weight_changes

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
