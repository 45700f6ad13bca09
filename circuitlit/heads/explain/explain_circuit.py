"""`explain_circuit`: what a reader wants to know of a circuit first, and the controls beside it."""

from __future__ import annotations

from circuitlit.arguments import checks_arguments
from circuitlit.discover.workbench import Workbench
from circuitlit.evaluate.measure import TestBed
from circuitlit.graph import Circuit
from circuitlit.heads.explain.effects import edge_effects, estimated_effects
from circuitlit.heads.explain.examples import show_examples
from circuitlit.heads.explain.explanation import Explanation
from circuitlit.heads.explain.nodes import find_leading
from circuitlit.progress import phase


@checks_arguments
def explain_circuit(
    bench: Workbench,
    circuit: Circuit,
    *,
    examples: int = 3,
    heads: int = 12,
    mlps: int = 4,
    edges: int = 6,
    pairs: int = 12,
    seed: int = 0,
) -> Explanation:
    """Show what a circuit says, and which of its nodes matter: their effects, roles, attention and writes.

    Candidates are the nodes with the largest effects by the metric's gradient on validation pairs. Those whose ablation
    does most on half of these are measured on test pairs, beside half as many random nodes of the circuit.

    Args:
        bench: subject, pairs and masked model.
        circuit: of the same model.
        examples: test pairs that are shown.
        heads, mlps: leading nodes of each kind; 0 of both leaves nodes and edges out.
        edges: edges with the largest estimates that are cut one by one, and as many random ones.
        pairs: pairs that nodes are chosen on, and as many that they are measured on.
        seed: of random nodes and tokens.
    """
    nodes, of_edges, choose = None, None, bench.data.to_choose_on
    if heads + mlps:
        with phase("estimates", "Estimating the effects of all edges"):
            effects = estimated_effects(bench, circuit, choose.spread(pairs), bench.data.batch_size)
        bed = TestBed.of(bench, choose, choose.spread(-(-pairs // 2)))
        sizes = {"heads": heads, "mlps": mlps, "pairs": pairs, "examples": examples}
        nodes = find_leading(bench, bed, circuit, effects, **sizes, seed=seed)
        with phase("edges", "Cutting edges one by one"):
            of_edges = edge_effects(bed, circuit, effects, edges, seed)
    return Explanation(
        task=bench.data.splits.name,
        model=bench.subject.name,
        method=circuit.scores.method,
        ablation=bench.references.kind,
        seed=seed,
        n_edges=circuit.n_edges,
        examples=show_examples(bench, circuit, bench.data.test.spread(examples)),
        nodes=nodes,
        edges=of_edges,
    )
