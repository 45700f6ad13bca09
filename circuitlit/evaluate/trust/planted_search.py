"""Has the search for rivals the power to find one? Tried where there surely is one."""

from __future__ import annotations

from typing import Any

import torch

from circuitlit.evaluate.find import prepare_bench
from circuitlit.evaluate.trust.rival_search import RivalSearch
from circuitlit.evaluate.trust.rivals import ACCEPTED, PlantedSearch
from circuitlit.graph import Circuit, EdgeScores, Graph
from circuitlit.model.planted import places_back, planted_copies


def search_planted(graph: Graph, count: int, device: torch.device, settings: dict[str, Any]) -> PlantedSearch:
    """Search a circuit without any edge of one of two planted copies.

    The first circuit is one copy and random edges, none of the other copy, so that it has the size that the search
    was made with. Masks begin equal: gradients find the planted copy without any training, so a start from them would
    say nothing of what training can find.

    Args:
        graph: whose layers and heads the random model has.
        count: edges of the circuit.
        device: to search on.
        settings: of `RivalSearch.of`.

    Raises:
        UserError: two copies do not fit into such a graph, or a copy into so few edges.
    """
    subject, copies = planted_copies(graph, settings["seed"])
    subject.model.to(device)  # type: ignore[arg-type]
    bench = prepare_bench(subject, places_back(seed=settings["seed"]), 1 - count / subject.graph.n_edges)
    values = torch.rand(1, subject.graph.n_edges, generator=torch.Generator().manual_seed(settings["seed"]))
    values[0, copies[0]], values[0, copies[1]] = 2.0, 0.0
    first = Circuit.cut(EdgeScores(subject.graph, values, "planted", kind="share"), bench.count)
    search = RivalSearch.of(bench, first, **{**settings, "starts": ["equal"]})
    rival = search.rival(0)
    return PlantedSearch(
        found=rival.state == ACCEPTED,
        edges_found=len(set(copies[1]) & set(rival.edges)),
        edges=len(copies[1]),
        kl=rival.kl.value or 0.0,
        corrupted_kl=float(search.testing.corrupted.kl.mean()),
        n_edges=bench.count,
        n_edges_total=subject.graph.n_edges,
    )
