"""Where each mask lives in the one flat vector that is trained, saved and resumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.graph.topology import Graph

Sites = Literal["edges", "nodes", "both"]


@dataclass(frozen=True)
class MaskLayout:
    """A flat vector of masks: on edges, on writer nodes, or first those on edges and then those on nodes.

    A node's mask multiplies those of all edges out of it; an edge without a mask of its own has 1.

    Attributes:
        graph: the edges' order.
        roles: names of the token roles that have masks of their own; empty for one mask at all positions.
        sites: what has masks.
    """

    graph: Graph
    roles: tuple[str, ...] = ()
    sites: Sites = "edges"

    @property
    def copies(self) -> int:
        """Masks per edge or node: one, or one a role."""
        return max(1, len(self.roles))

    @property
    def n_edges(self) -> int:
        """Edges that can be kept or cut, an edge counted once a role."""
        return self.copies * self.graph.n_edges

    @property
    def n_edge_masks(self) -> int:
        """Masks that sit on edges."""
        return 0 if self.sites == "nodes" else self.n_edges

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return self.n_edge_masks + (0 if self.sites == "edges" else self.copies * self.graph.n_writers)

    def edges(self, flat: Float[Tensor, "size"]) -> Float[Tensor, "copies edge"]:
        """Mask of every edge, its writer's node mask multiplied in."""
        edge, node = self._split(flat)
        if edge is None or node is None:
            return edge if node is None else node  # type: ignore[return-value]
        return edge * node

    def weakest(self, flat: Float[Tensor, "size"]) -> Float[Tensor, "copies edge"]:
        """For every edge the lesser of its own and its writer's number: an edge is open if both are."""
        edge, node = self._split(flat)
        if edge is None or node is None:
            return edge if node is None else node  # type: ignore[return-value]
        return torch.minimum(edge, node)

    def share(self, open_probability: Float[Tensor, "size"]) -> Float[Tensor, ""]:
        """Expected share of edges kept, from the masks' independent probabilities."""
        return self.edges(open_probability).mean()

    def dense(self, flat: Float[Tensor, "size"]) -> Float[Tensor, "copies reader writer"]:
        """The masks as matrices that mix writers into readers; 0 where there is no edge."""
        return scatter_edges(self.graph, self.edges(flat))

    def _split(self, flat: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Own mask and writer's mask of every edge, None where the layout has none."""
        edge = flat[: self.n_edge_masks].view(self.copies, -1) if self.n_edge_masks else None
        if self.sites == "edges":
            return edge, None
        node = flat[self.n_edge_masks :].view(self.copies, self.graph.n_writers)
        return edge, node[:, self.graph.placed("writer_of", flat.device)]


def scatter_edges(graph: Graph, values: Float[Tensor, "copies edge"]) -> Float[Tensor, "copies reader writer"]:
    """Values on edges as `[n_readers, n_writers]` matrices, 0 where there is no edge."""
    index = graph.placed("dense_index", values.device).expand(values.shape[0], -1)
    matrix = values.new_zeros(values.shape[0], graph.n_readers * graph.n_writers)
    return torch.scatter(matrix, 1, index, values).view(-1, graph.n_readers, graph.n_writers)


def sum_by_writer(graph: Graph, values: Float[Tensor, "copies edge"]) -> Float[Tensor, "copies writer"]:
    """Sum of the values of all edges out of each writer: an attribution's node scores."""
    total = values.new_zeros(values.shape[0], graph.n_writers)
    return total.index_add_(1, graph.placed("writer_of", values.device), values)
