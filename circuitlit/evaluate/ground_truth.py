"""Scores against a circuit that is known: areas under the ROC curve over edges and over nodes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.evaluate.statistics import average_ranks
from circuitlit.graph import EdgeScores, Graph

FOLDER = Path(__file__).parent / "references"


@dataclass(frozen=True)
class Reference:
    """Nodes, and where they are known edges, that a published or planted circuit consists of.

    Attributes:
        name: what it is called.
        source: where it was published.
        nodes: True for the writers that belong to it.
        candidates: True for the writers that its authors judged; others do not count for or against.
        edges: True for the edges that belong to it; None where only nodes are published.
    """

    name: str
    source: str
    nodes: Bool[Tensor, "writer"]
    candidates: Bool[Tensor, "writer"]
    edges: Bool[Tensor, "edge"] | None


def load_reference(name: str, graph: Graph) -> Reference:
    """A shipped reference by its name, or one of your own from a json file.

    The file has `source`, `graph` (a Graph's fields), `candidates` ("heads" or "heads and mlps"), `nodes` (lists of
    names under any headings) and, if known, `edges` (a list of names).

    Raises:
        UserError: no such reference, not readable, or of another graph.
    """
    path = FOLDER / f"{name}.json" if not name.endswith(".json") else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.json")))
        raise UserError(f"reference {name} does not exist; choose one of {known}, or name a json file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        own = Graph(**content["graph"])
        if own != graph:
            raise UserError(f"reference {name} is of {own}, the scores are of {graph}; take scores of that model")
        nodes = torch.zeros(graph.n_writers, dtype=torch.bool)
        nodes[[graph.writers.index(node) for group in content["nodes"].values() for node in group]] = True
        kinds = {"heads": ("a",), "heads and mlps": ("a", "m")}[content["candidates"]]
        candidates = torch.tensor([writer.startswith(kinds) for writer in graph.writers])
        edges = None
        if content.get("edges"):
            edges = torch.zeros(graph.n_edges, dtype=torch.bool)
            edges[[graph.edge_index(edge) for edge in content["edges"]]] = True
        return Reference(path.stem, content["source"], nodes, candidates, edges)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a readable reference ({error}); see {FOLDER.name}/ioi_gpt2.json") from error


def roc_auc(scores: Float[Tensor, "item"], positive: Bool[Tensor, "item"]) -> float:
    """Probability that a positive item scores above a negative one, ties counting half; NaN without both kinds.

    1 is a perfect ranking, 0.5 chance. Source: the Mann-Whitney statistic, U = R - n (n + 1) / 2 from average ranks.
    """
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    rank_sum = float(average_ranks(scores.double())[positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def edge_auc(scores: EdgeScores, edges: Bool[Tensor, "edge"]) -> float:
    """ROC-AUC of edges by the order in which they are selected, the first over token roles."""
    return roc_auc(scores.order.amax(0), edges)


def node_auc(scores: EdgeScores, nodes: Bool[Tensor, "writer"], candidates: Bool[Tensor, "writer"]) -> float:
    """ROC-AUC of nodes, each by its first outgoing edge to be selected: the threshold at which it joins the circuit."""
    return roc_auc(node_order(scores)[candidates], nodes[candidates])


def node_order(scores: EdgeScores) -> Float[Tensor, "writer"]:
    """Order of each writer's best outgoing edge."""
    graph = scores.graph
    best = torch.full((graph.n_writers,), -torch.inf)
    return best.scatter_reduce(0, graph.writer_of, scores.order.amax(0).float(), "amax")


def against(scores: EdgeScores, reference: Reference) -> dict[str, object]:
    """Both areas, plain types for result.json; the edges' only where the reference has edges."""
    edges = {} if reference.edges is None else {"edge_auc": edge_auc(scores, reference.edges)}
    return {
        "reference": reference.name,
        "source": reference.source,
        "n_nodes": int(reference.nodes.sum()),
        "node_auc": node_auc(scores, reference.nodes, reference.candidates),
        **edges,
    }
