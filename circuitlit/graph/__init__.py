"""The computational graph: its edges' names and order, scores on them, and circuits cut from it.

Nothing here knows a model's modules; a `Graph` is a handful of integers.
"""

from circuitlit.graph.circuit import Circuit
from circuitlit.graph.exchange import export_circuit, load_circuit
from circuitlit.graph.layout import MaskLayout
from circuitlit.graph.scores import EdgeScores
from circuitlit.graph.select import greedy, reachable_edges, top_k
from circuitlit.graph.topology import INPUTS, Graph

__all__ = [
    "INPUTS",
    "Circuit",
    "EdgeScores",
    "Graph",
    "MaskLayout",
    "export_circuit",
    "greedy",
    "load_circuit",
    "reachable_edges",
    "top_k",
]
