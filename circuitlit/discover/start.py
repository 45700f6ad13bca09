"""Where masks start: all equal, or from any method's scores."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.graph import EdgeScores, MaskLayout
from circuitlit.graph.layout import sum_by_writer
from circuitlit.graph.select import top_k

How = Literal["equal", "ranks", "confident"]


def initial_log_alpha(
    layout: MaskLayout, how: How, scores: EdgeScores | None, count: int, scale: float
) -> Float[Tensor, "mask"]:
    """The log-alphas that a mask run begins with.

    Node masks beside edge masks start open. Node masks alone start from a sum over all edges out of the node: of their
    effects, with their signs, which is the node's own effect to first order, or else of their weights in the circuit of
    `count` edges.

    Args:
        layout: what the mask vector holds.
        how: "equal" gives all the same value; "ranks" spreads them from -scale to scale by rank; "confident" puts
            the best at +scale, as many as make up `count` edges, and the others at -scale.
        scores: needed but for "equal".
        count: edges asked for.
        scale: log-alpha units.

    Raises:
        UserError: scores are needed and absent, or do not fit the layout.
    """
    if how == "equal":
        return torch.full((layout.size,), scale)
    if scores is None:
        raise UserError(f"mask.init={how} needs scores; set mask.init_from to a method or a file, or mask.init=equal")
    if scores.size != layout.n_edges:
        raise UserError(
            f"mask.init_from has {scores.size} scores, the masks are on {layout.n_edges} edges; make scores "
            "of this model"
        )
    if layout.sites == "nodes":
        return _of_nodes(layout, how, scores, count) * scale
    own = _signs(scores.order.flatten(), how, count)
    beside = torch.ones(layout.size - layout.n_edge_masks)
    return torch.cat([own, beside]) * scale


def _signs(order: Float[Tensor, "mask"], how: How, count: int) -> Float[Tensor, "mask"]:
    """+1 and -1, or ranks between them, by some numbers of which the largest are best."""
    if how == "confident":
        return top_k(order, count).float() * 2 - 1
    ranks = torch.empty(order.numel())
    ranks[torch.sort(order, stable=True).indices] = torch.linspace(-1, 1, order.numel())
    return ranks


def _of_nodes(layout: MaskLayout, how: How, scores: EdgeScores, count: int) -> Float[Tensor, "mask"]:
    adds = scores.signed if scores.kind == "effect" else scores.weight * top_k(scores.order, count)
    sums = sum_by_writer(layout.graph, adds).flatten()
    own = sums.abs() if scores.ranking == "absolute" else sums
    degree = sum_by_writer(layout.graph, torch.ones(layout.copies, layout.graph.n_edges)).flatten()
    order = torch.sort(own, descending=True, stable=True).indices
    nodes = int((degree[order].cumsum(0) < count).sum()) + 1
    return _signs(own, how, nodes)
