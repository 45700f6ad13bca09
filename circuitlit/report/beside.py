"""Other circuits and groups of nodes for the page's graph, read from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from circuitlit.errors import UserError
from circuitlit.evaluate.trust.rivals import ACCEPTED, Rivals
from circuitlit.evaluate.trust.stability import Stability
from circuitlit.graph import Circuit, Graph, load_circuit
from circuitlit.graph.nodes import known_nodes
from circuitlit.heads.explain.explanation import Explanation
from circuitlit.report.artefacts import Run
from circuitlit.report.drawing import Beside, Layer
from circuitlit.report.edges import edges_by_effect, ranked_edges
from circuitlit.result import Result, read_json

Found = TypeVar("Found", bound=Result)
GROUPS = "groups.json"


def read_beside(
    run: Run, paths: Sequence[Path | str] = (), groups: Mapping[str, Sequence[str]] | None = None
) -> Beside:
    """What a run's circuit is drawn with.

    Args:
        run: whose graph the others must share.
        paths: runs, circuit files, trust cards, or folders of `rivals.json`. A card in the run's own folder is taken
            unasked.
        groups: nodes by the names of groups; None takes `groups.json` of the run's folder, if it is there.

    Raises:
        UserError: a file that is none of these, a circuit of another model, or a group with unknown nodes.
    """
    graph = run.circuit.graph
    if groups is None:
        groups = read_groups(run.folder / GROUPS) if (run.folder / GROUPS).is_file() else {}
    made = Beside(groups=checked_groups(graph, groups))
    for path in map(Path, paths):
        rivals, stability = _part(path, Rivals, "unique"), _part(path, Stability, "stable")
        if rivals is None and stability is None:
            made = replace(made, layers=[*made.layers, _layer(graph, path)])
        made = _with_trust(run.circuit, made, rivals, stability, path)
    own = _part(run.folder, Rivals, "unique"), _part(run.folder, Stability, "stable")
    return _with_trust(run.circuit, made, *own, run.folder)


def _part(path: Path, kind: type[Found], part: str) -> Found | None:
    """What a verb found, or a part that a trust card keeps; None where neither is there."""
    folder = path.parent if path.name == kind.file else path
    if (folder / kind.file).is_file():
        return kind.load(folder)
    kept = folder / "trust" / f"{part}.json"
    content = read_json(kept).get("content") if kept.is_file() else None
    if not isinstance(content, dict):
        return None
    return kind.from_dict({"schema": {"name": kind.schema, "version": kind.version}, **content}, str(kept))


def _with_trust(
    circuit: Circuit, beside: Beside, rivals: Rivals | None, stability: Stability | None, path: Path
) -> Beside:
    """Accepted rivals as layers; how often edges are found again, or else how many of these circuits hold them."""
    for part in (rivals, stability):
        if part is not None and part.n_edges_total != circuit.kept.numel():
            raise UserError(f"beside: {path} speaks of circuits of another model or task")
    if rivals is not None:
        core, often = _shared(circuit, rivals)
        note = "in this circuit and in all accepted rivals; the more of these hold an edge, the less transparent it is"
        layers = [*beside.layers, *_layers(circuit, rivals, path)]
        beside = replace(beside, layers=layers, core=core, often=often, note=note)
    halves = next((one for one in stability.halves if one.edges), None) if stability else None
    if stability is not None and halves is not None:
        often = {}
        for edge, share in zip(halves.edges, halves.pi, strict=True):
            name = circuit.graph.edge_name(edge % circuit.graph.n_edges)
            often[name] = max(share, often.get(name, 0.0))
        core = frozenset(name for name, share in often.items() if share >= stability.share)
        note = (
            f"found again in {stability.share:.0%} or more of {halves.n_circuits} circuits from halves of the "
            f"{halves.of}; the more of these find an edge, the less transparent it is"
        )
        beside = replace(beside, core=core, often=often, note=note)
    return beside


def read_groups(path: Path) -> dict[str, list[str]]:
    """The groups of a file.

    Raises:
        UserError: it is not an object of lists of names.
    """
    found = read_json(path, "name a file that the page saved")
    if not all(isinstance(nodes, list) and all(isinstance(one, str) for one in nodes) for nodes in found.values()):
        raise UserError(f'{path}: groups are an object of lists: {{"movers": ["a23.h3", "a29.h1"]}}')
    return found


def checked_groups(graph: Graph, groups: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Groups whose nodes exist, each in one group.

    Raises:
        UserError: an unknown node, or one of two groups.
    """
    grouped: dict[str, str] = {}
    shared = [f"a{layer}.kv{head}" for layer in range(graph.n_layers) for head in range(graph.n_kv_heads)]
    for name, nodes in groups.items():
        for node in known_nodes(graph, nodes, [*shared, "logits"]):
            if grouped.setdefault(node, name) != name:
                raise UserError(f"node {node} is in the groups '{grouped[node]}' and '{name}'; leave it in one")
    return {name: list(nodes) for name, nodes in groups.items() if nodes}


def _layer(graph: Graph, path: Path) -> Layer:
    circuit = load_circuit(path, graph)
    if circuit.graph != graph:
        raise UserError(f"beside: {path} is of another model; a graph holds circuits of one model")
    file = path / Explanation.file
    effects = Explanation.load(file).edges if file.is_file() else None
    return Layer(path.name, edges_by_effect(circuit, effects.estimate) if effects else ranked_edges(circuit))


def _layers(circuit: Circuit, rivals: Rivals, path: Path) -> list[Layer]:
    """The accepted rivals, those with fewest common edges first."""
    if circuit.scores.roles:
        raise UserError(f"beside: {path} holds rivals, which a circuit with masks by token role is not drawn with")
    accepted = sorted((one for one in rivals.tried if one.state == ACCEPTED), key=lambda one: one.share)
    return [
        Layer(f"rival with {one.share:.0%} of the edges", ranked_edges(_of(circuit, one.edges))) for one in accepted
    ]


def _of(circuit: Circuit, edges: Sequence[int]) -> Circuit:
    kept = torch.zeros_like(circuit.kept)
    kept[0, list(edges)] = True
    return Circuit.of(circuit.scores, kept)


def _shared(circuit: Circuit, rivals: Rivals) -> tuple[frozenset[str], dict[str, float]]:
    """Edges of the circuit and all accepted rivals, and for each edge the share of these circuits that hold it."""
    sets: list[Any] = [rivals.edges, *(one.edges for one in rivals.tried if one.state == ACCEPTED)]
    count = torch.zeros(circuit.graph.n_edges)
    for edges in sets:
        count[list(edges)] += 1
    share = {circuit.graph.edge_name(edge): float(count[edge]) / len(sets) for edge in count.nonzero()[:, 0].tolist()}
    return frozenset(name for name, value in share.items() if value == 1), share
