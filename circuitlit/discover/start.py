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

    Node masks beside edge masks start open. Node masks alone start from the node's score, the sum of the scores of all
    edges out of it.

    Args:
        layout: what the mask vector holds.
        how: "equal" gives all the same value; "ranks" spreads them from -scale to scale by importance; "confident" puts
            the most important at +scale, as many as make up `count` edges, and the others at -scale.
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
    if scores.values.numel() != layout.n_edges:
        raise UserError(
            f"mask.init_from has {scores.values.numel()} scores, the masks are on {layout.n_edges} edges; make scores "
            "of this model"
        )
    if layout.sites == "nodes":
        return _of_nodes(layout, how, scores, count) * scale
    own = _signs(scores.importance().flatten(), how, count)
    beside = torch.ones(layout.size - layout.n_edge_masks)
    return torch.cat([own, beside]) * scale


def _signs(importance: Float[Tensor, "mask"], how: How, count: int) -> Float[Tensor, "mask"]:
    """+1 and -1, or ranks between them."""
    if how == "confident":
        return top_k(importance, count).float() * 2 - 1
    ranks = torch.empty(importance.numel())
    ranks[torch.sort(importance, stable=True).indices] = torch.linspace(-1, 1, importance.numel())
    return ranks


def _of_nodes(layout: MaskLayout, how: How, scores: EdgeScores, count: int) -> Float[Tensor, "mask"]:
    sums = sum_by_writer(layout.graph, scores.values)
    importance = (sums.abs() if scores.ranks_by_magnitude else sums).flatten()
    degree = sum_by_writer(layout.graph, torch.ones(layout.copies, layout.graph.n_edges)).flatten()
    order = torch.sort(importance, descending=True, stable=True).indices
    nodes = int((degree[order].cumsum(0) < count).sum()) + 1
    return _signs(importance, how, nodes)
