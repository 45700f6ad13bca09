"""How good a circuit is, on pairs it has never seen, and compared with what."""

from circuitlit.evaluate.behaviour import Behaviour
from circuitlit.evaluate.controls import random_circuit, shuffled_circuit
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.statistics import Estimate, Summary, paired_difference, summarise

__all__ = [
    "Behaviour",
    "Estimate",
    "Summary",
    "TestBed",
    "paired_difference",
    "random_circuit",
    "shuffled_circuit",
    "summarise",
]
