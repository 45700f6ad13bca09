"""What a finished run leaves in its directory, read and checked before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from circuitlit.errors import UserError
from circuitlit.graph import Circuit
from circuitlit.heads.explain.explanation import Explanation
from circuitlit.result import read_json
from circuitlit.timeline.mask_timeline import MaskTimeline

FILES = {
    "circuit.json": "the circuit's edges by name, with provenance",
    "circuit.safetensors": "scores of all edges, which are kept, which are reachable",
    "result.json": "every number of this page",
    "history.json": "the training curves",
}
EVOLUTION = {"evolution.json": "how the masks evolved, snapshot by snapshot, and the stages"}
EXPLANATION = {"explanation.json": "the examples of this page, the heads that matter, effects of edges"}
_NUMBER = (int, float)
_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "status": str,
    "task": str,
    "model": str,
    "n_edges_total": int,
    "n_edges": int,
    "n_edges_reachable": int,
    "sparsity": _NUMBER,
    "n_pairs": int,
}


@dataclass(frozen=True)
class Run:
    """The artefacts of one run.

    Attributes:
        folder: the run directory.
        circuit: the circuit with the scores of all edges.
        result: `result.json`: metrics with intervals, settings, provenance.
        history: `history.json`: rows of the training curves.
        evolution: `evolution.json`: how the masks evolved; None for a run that has none.
        explanation: `explanation.json`: what the circuit does; None for a run that has none.
    """

    folder: Path
    circuit: Circuit
    result: dict
    history: dict
    evolution: MaskTimeline | None = None
    explanation: Explanation | None = None

    @property
    def files(self) -> dict[str, str]:
        """What lies beside the page, and what it is."""
        return FILES | (EVOLUTION if self.evolution else {}) | (EXPLANATION if self.explanation else {})


def read_run(folder: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: an artefact is missing, damaged or lacks a field that the page needs.
    """
    result, history = read_json(folder / "result.json"), read_json(folder / "history.json")
    for key, kind in _REQUIRED.items():
        if not isinstance(result.get(key), kind):
            raise UserError(f"{folder / 'result.json'}: '{key}' is missing or of a wrong type; write the run again")
    rows = history.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{folder / 'history.json'}: 'rows' is not a list of objects; write the run again")
    read_json(folder / "circuit.json")
    circuit, evolution = _read_circuit(folder), _read_evolution(folder / "evolution.json")
    explained = Explanation.load(folder) if (folder / Explanation.file).is_file() else None
    return Run(folder, circuit, result, history, evolution, explained)


def _read_evolution(path: Path) -> MaskTimeline | None:
    """The masks' evolution, None where there are not two snapshots to compare."""
    if not path.is_file():
        return None
    try:
        evolution = MaskTimeline.load(path)
    except UserError as error:
        raise UserError(f"{error}; or write it again with `timeline run={path.parent}`") from error
    return evolution if len(evolution.steps) > 1 else None


def _read_circuit(folder: Path) -> Circuit:
    path = folder / "circuit.safetensors"
    try:
        circuit = Circuit.load(path)
        fits = circuit.kept.shape == circuit.reachable.shape == circuit.scores.order.shape
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a circuit of this version ({error}); write the run again") from error
    if not fits:
        raise UserError(f"{path}: scores and kept edges differ in shape; write the run again")
    return circuit
