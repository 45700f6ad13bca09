# What evaluate/__init__.py offers, each imported when it is first used.
from .behaviour import Behaviour
from .controls import random_circuit, shuffled_circuit
from .curves import Curve, size_curve
from .ground_truth import edge_auc, load_reference, node_auc
from .knockouts import completeness, edge_minimality, node_minimality
from .measure import TestBed
from .similarity import consensus, noise_floor, similarity
from .smallest import smallest_circuit
from .statistics import Estimate, paired_difference
from .summary import Summary, summarise

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
