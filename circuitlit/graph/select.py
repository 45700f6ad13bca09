"""From scores to a set of edges: exact counts, then what of it can matter."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlit.graph.topology import Graph


def edge_budget(sparsity: float, total: int) -> int:
    """Edges to keep for a share of edges removed; at least one.

    Raises:
        ValueError: sparsity outside (0, 1).
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity {sparsity} is not between 0 and 1")
    return max(1, round((1 - sparsity) * total))


def top_k(importance: Float[Tensor, "*shape"], count: int) -> Bool[Tensor, "*shape"]:
    """Exactly `count` edges of largest importance; ties go to the earlier edge, on every device alike."""
    flat = importance.flatten().cpu()
    order = torch.sort(flat, descending=True, stable=True).indices
    kept = torch.zeros(flat.numel(), dtype=torch.bool)
    kept[order[:count]] = True
    return kept.view(importance.shape)


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
