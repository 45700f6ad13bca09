"""Ways to tune a model, compared at one task score: which checkpoints, and where each put its change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.compare.weights import PartChange, distribution
from circuitlit.errors import UserError
from circuitlit.graph import EdgeScores


def common_level(series: Mapping[str, Mapping[int, float]]) -> float:
    """The highest score that every run reaches at some step.

    Args:
        series: scores of each run's checkpoints, by step.
    """
    return min(max(scores.values()) for scores in series.values())


def nearest_step(name: str, scores: Mapping[int, float], level: float) -> int:
    """The checkpoint whose score is nearest to a level; of equal ones the first, and never the untouched model.

    Raises:
        UserError: the run has no checkpoint behind its first step.
    """
    tuned = {step: score for step, score in scores.items() if step > 0}
    if not tuned:
        raise UserError(f"run {name} has no checkpoint but that of step 0; tune with tune.checkpoints=[5,10,20,...]")
    return min(tuned, key=lambda step: (abs(tuned[step] - level), step))


def change_figures(changes: Sequence[PartChange]) -> dict[str, Any]:
    """Size, reach and concentration of a weight change.

    Returns:
        `relative`: norm of the change over that of all weights; `unchanged`: share of weights that are exactly as they
        were; `modules`, `of_modules`: weight matrices with any change, and all (a head's slices count as one each);
        `layers`: layers with any change; `layers_80`: the fewest layers that hold 80 % of its energy, most first;
        `gini`, `entropy`: of the energy over layers; `node_gini`: over nodes; `effective_rank`: mean over the changed
        matrices.
    """
    matrices = [part for part in changes if part.kind not in ("bias", "norm")]
    moved = [part for part in matrices if part.change.norm > 0]
    spread = distribution(list(changes))
    shares = {int(layer): share for layer, share in spread["layer"]["share"].items()}
    total = sum(part.change.norm**2 for part in changes) ** 0.5
    base = sum(part.change.base_norm**2 for part in changes) ** 0.5
    count = sum(part.numel for part in changes)
    return {
        "relative": total / base if base else math.nan,
        "unchanged": sum(part.change.unchanged * part.numel for part in changes) / count,
        "modules": len(moved),
        "of_modules": len(matrices),
        "layers": sum(share > 0 for share in shares.values()),
        "layers_80": fewest(shares, 0.8),
        "gini": spread["layer"]["gini"],
        "entropy": spread["layer"]["entropy"],
        "node_gini": spread["node"]["gini"],
        "effective_rank": sum(part.change.effective_rank for part in moved) / len(moved) if moved else 0.0,
    }


def fewest(shares: Mapping[int, float], enough: float) -> list[int]:
    """The fewest places that together hold a share of the whole, largest first; none where there is nothing."""
    chosen, held = [], 0.0
    for place in sorted(shares, key=lambda place: (-shares[place], place)):
        if held >= enough - 1e-12 or not shares[place]:
            break
        chosen.append(place)
        held += shares[place]
    return chosen


def score_figures(scores: EdgeScores) -> dict[str, float]:
    """How strong and how spread the effects of all edges are; of other kinds of scores, their weights.

    Returns:
        `intensity`: mean absolute effect, in its unit; `entropy`: of the shares of all of them, 1 even and 0 in one
        edge; `kurtosis`: fourth moment over the squared second, less 3.

    Source: arXiv 2509.21044.
    """
    values: Float[Tensor, "edge"] = scores.signed.sum(0)
    size = values.abs()
    share = size / size.sum().clamp(min=torch.finfo(torch.float64).tiny)
    centred = values - values.mean()
    spread = centred.square().mean()
    return {
        "intensity": float(size.mean()),
        "entropy": float(torch.special.entr(share).sum()) / math.log(len(share)),
        "kurtosis": float(centred.pow(4).mean() / spread.square()) - 3 if float(spread) else math.nan,
    }
