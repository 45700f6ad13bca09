"""Where each mask lives in the one flat vector that is trained, saved and resumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.graph.topology import Graph

T = TypeVar("T", bound=Tensor)


@dataclass(frozen=True)
class MaskLayout:
    """A flat vector of masks: edges (times token roles), then, where asked for, writer nodes (times roles).

    Attributes:
        graph: the edges' order.
        roles: names of the token roles that have masks of their own; empty for one mask at all positions.
        nodes: True adds one mask per writer, which multiplies the masks of all edges out of it.
    """

    graph: Graph
    roles: tuple[str, ...] = ()
    nodes: bool = False

    @property
    def copies(self) -> int:
        """Masks per edge: one, or one a role."""
        return max(1, len(self.roles))

    @property
    def n_edge_masks(self) -> int:
        """Masks that sit on edges."""
        return self.copies * self.graph.n_edges

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return self.n_edge_masks + (self.copies * self.graph.n_writers if self.nodes else 0)

    def edges(self, flat: Float[Tensor, "size"]) -> Float[Tensor, "copies edge"]:
        """Mask of every edge, its writer's node mask multiplied in."""
        edge = flat[: self.n_edge_masks].view(self.copies, self.graph.n_edges)
        if not self.nodes:
            return edge
        node = flat[self.n_edge_masks :].view(self.copies, self.graph.n_writers)
        return edge * node[:, self.graph.placed("writer_of", flat.device)]

    def dense(self, flat: Float[Tensor, "size"]) -> Float[Tensor, "copies reader writer"]:
        """The masks as matrices that mix writers into readers; 0 where there is no edge."""
        return scatter_edges(self.graph, self.edges(flat))


def scatter_edges(graph: Graph, values: Float[Tensor, "copies edge"]) -> Float[Tensor, "copies reader writer"]:
    """Values on edges as `[n_readers, n_writers]` matrices, 0 where there is no edge."""
    index = graph.placed("dense_index", values.device).expand(values.shape[0], -1)
    matrix = values.new_zeros(values.shape[0], graph.n_readers * graph.n_writers)
    return torch.scatter(matrix, 1, index, values).view(-1, graph.n_readers, graph.n_writers)
