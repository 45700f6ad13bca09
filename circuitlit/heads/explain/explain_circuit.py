"""`explain_circuit`: what a reader wants to know of a circuit first, and the controls beside it."""

from __future__ import annotations

from circuitlit.discover.workbench import Workbench
from circuitlit.graph import Circuit
from circuitlit.heads.explain.examples import show_examples
from circuitlit.heads.explain.explanation import Explanation


def explain_circuit(bench: Workbench, circuit: Circuit, *, examples: int = 3, seed: int = 0) -> Explanation:
    """Show what a circuit says.

    Args:
        bench: subject, pairs and masked model.
        circuit: of the same model.
        examples: test pairs that are shown.
        seed: of random controls.
    """
    rows = bench.data.test.spread(examples)
    return Explanation(
        task=bench.data.splits.name,
        model=bench.subject.name,
        method=circuit.scores.method,
        ablation=bench.references.kind,
        seed=seed,
        n_edges=circuit.n_edges,
        examples=show_examples(bench, circuit, rows),
    )
