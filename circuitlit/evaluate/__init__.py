"""How good a circuit is, on pairs it has never seen, and compared with what."""

from circuitlit.evaluate.behaviour import Behaviour
from circuitlit.evaluate.completeness import completeness, edge_minimality, node_minimality
from circuitlit.evaluate.controls import random_circuit, shuffled_circuit
from circuitlit.evaluate.curves import Curve, size_curve
from circuitlit.evaluate.ground_truth import edge_auc, load_reference, node_auc
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.similarity import consensus, noise_floor, similarity
from circuitlit.evaluate.smallest import smallest_circuit
from circuitlit.evaluate.statistics import Estimate, paired_difference
from circuitlit.evaluate.summary import Summary, summarise

__all__ = [
    "Behaviour",
    "Curve",
    "Estimate",
    "Summary",
    "TestBed",
    "completeness",
    "consensus",
    "edge_auc",
    "edge_minimality",
    "load_reference",
    "node_auc",
    "node_minimality",
    "noise_floor",
    "paired_difference",
    "random_circuit",
    "shuffled_circuit",
    "similarity",
    "size_curve",
    "smallest_circuit",
    "summarise",
]
