"""From scores to a set of edges: exact counts, then what of it can matter."""

from __future__ import annotations

import heapq
from collections.abc import Collection
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.graph.topology import Graph

Select = Literal["top_k", "greedy"]
SELECTIONS = get_args(Select)


def edge_budget(sparsity: float, total: int) -> int:
    """Edges to keep for a share of edges removed; at least one.

    Raises:
        UserError: sparsity outside (0, 1).
    """
    if not 0 < sparsity < 1:
        raise UserError(f"sparsity={sparsity} is not between 0 and 1; sparsity=0.95 removes 95 % of the edges")
    return max(1, round((1 - sparsity) * total))


def top_k(order: Float[Tensor, "*shape"], count: int) -> Bool[Tensor, "*shape"]:
    """Exactly the `count` edges of the largest numbers; ties go to the earlier edge, on every device alike."""
    flat = order.flatten().cpu()
    first = torch.sort(flat, descending=True, stable=True).indices[:count]
    kept = torch.zeros(flat.numel(), dtype=torch.bool)
    kept[first] = True
    return kept.view(order.shape)


def greedy(graph: Graph, order: Float[Tensor, "copies edge"], count: int) -> Bool[Tensor, "copies edge"]:
    """Exactly `count` edges, grown from the logits: again and again the best edge into what is there already.

    An edge is a candidate once its reader's node is in the circuit, and its writer's node joins with it, so every edge
    leads to the logits (which top-k does not promise); whether the input reaches it is for `reachable_edges` to say.
    Token roles are joined: a node is there as soon as one role has it. Ties go to the earlier edge.

    Source: EAP-IG (Hanna et al., arXiv 2403.17806) section 3, a maximising form of Dijkstra's algorithm.
    """
    flat = order.flatten().tolist()
    offsets, visible, total = graph.offsets.tolist(), graph.visible.tolist(), graph.n_edges
    readers_of_writer: list[list[int]] = [[] for _ in range(graph.n_writers)]
    for reader, writers in enumerate(graph.writers_of_reader):
        for writer in writers:
            readers_of_writer[writer].append(reader)
    kept = torch.zeros(len(flat), dtype=torch.bool)
    candidates: list[tuple[float, int, int]] = []
    opened: set[int] = set()
    joined: set[int] = set()

    def open_readers(readers: list[int]) -> None:
        for reader in set(readers) - opened:
            opened.add(reader)
            for copy in range(order.shape[0]):
                for writer in range(visible[reader]):
                    place = copy * total + offsets[reader] + writer
                    heapq.heappush(candidates, (-flat[place], place, writer))

    open_readers([graph.n_readers - 1])
    for _ in range(count):
        _, place, writer = heapq.heappop(candidates)
        kept[place] = True
        if writer not in joined:
            joined.add(writer)
            open_readers(readers_of_writer[writer])
    return kept.view(order.shape)


def edges_from(graph: Graph, writers: Collection[str]) -> Bool[Tensor, "edge"]:
    """The edges out of some writers: without them nothing of the writer is heard."""
    places = torch.tensor([graph.writers.index(name) for name in writers], dtype=torch.long)
    return torch.isin(graph.writer_of, places)


def writers_of(graph: Graph, edges: Bool[Tensor, "copies edge"]) -> Bool[Tensor, "writer"]:
    """The writers that some edge leaves, in any token role, the inputs among them."""
    found = torch.zeros(graph.n_writers, dtype=torch.bool)
    found[graph.writer_of[edges.any(0).cpu()]] = True
    return found


def nodes_of(graph: Graph, edges: Bool[Tensor, "copies edge"]) -> Bool[Tensor, "node"]:
    """The heads and MLPs that some edge leaves, in the order of `graph.nodes`."""
    return writers_of(graph, edges)[graph.inputs :]


def reachable_edges(graph: Graph, kept: Bool[Tensor, "copies edge"]) -> Bool[Tensor, "copies edge"]:
    """The kept edges that lie on a path from the input to the logits; the rest cannot change any output.

    A writer that no kept path reaches puts out exactly what it does on the corrupted prompt, and a reader whose node
    does not lead to the logits is never heard, so dropping their edges leaves the circuit's function as it is. Token
    roles are joined for this: attention moves information between positions.
    """
    any_role = kept.any(0).cpu()
    readers = graph.reader_of[any_role].tolist()
    writers = graph.writer_of[any_role].tolist()
    heard: list[list[int]] = [[] for _ in range(graph.n_readers)]
    for writer, reader in zip(writers, readers, strict=True):
        heard[reader].append(writer)

    alive = [False] * graph.n_writers
    alive[: graph.inputs] = [True] * graph.inputs
    for reader in range(graph.n_readers):
        if any(alive[writer] for writer in heard[reader]):
            for writer in graph.writers_of_reader[reader]:
                alive[writer] = True

    useful = [False] * graph.n_readers
    leads = [False] * graph.n_writers
    for reader in reversed(range(graph.n_readers)):
        fed = graph.writers_of_reader[reader]
        if reader == graph.n_readers - 1 or any(leads[writer] for writer in fed):
            useful[reader] = True
            for writer in heard[reader]:
                leads[writer] = True

    on_path = torch.tensor(alive)[graph.writer_of] & torch.tensor(useful)[graph.reader_of]
    return kept & on_path.to(kept.device)
