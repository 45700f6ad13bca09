"""A model's scores on all training pairs and on resamples of them, and its smallest circuit that is faithful."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from circuitlit.compare.difference import Resampled
from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Resampler, Workbench
from circuitlit.evaluate import TestBed, summarise
from circuitlit.graph import Circuit
from circuitlit.graph.select import edge_budget

SIZES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class ScoredModel:
    """One of the models that are compared.

    Attributes:
        resampled: its scores, and its circuits of the size asked for.
        smallest: the same with its smallest circuits that are faithful enough, None where none is.
        faithfulness: of circuits of each size tried, on validation pairs.
    """

    resampled: Resampled
    smallest: Resampled | None
    faithfulness: dict[int, float | None]


def score_model(
    bench: Workbench,
    method: Method,
    resamples: int = 10,
    seed: int = 0,
    *,
    sizes: Sequence[float] = SIZES,
    faithfulness: float = 0.8,
    probe_pairs: int = 32,
    scorer: Resampler | None = None,
) -> ScoredModel:
    """Score a model, and look for its smallest circuit that is faithful enough.

    Args:
        bench: subject, pairs and masked model.
        method: how edges are scored.
        resamples: of the training pairs.
        seed: of the resamples.
        sizes: shares of the edges that are tried.
        faithfulness: that is enough.
        probe_pairs: validation pairs that measure it.
        scorer: of the same model and method, where more than this asks for its scores.
    """
    found = resampled_scores(bench, method, resamples, seed, scorer)
    pairs = bench.data.to_choose_on
    batches = pairs.batches(bench.data.eval_batch_size, order=pairs.spread(probe_pairs))
    bed = TestBed.build(bench.model, bench.fresh_references(), batches)
    reached: dict[int, float | None] = {}
    for share in sorted(sizes):
        total = bench.layout.n_edge_masks
        count = total if share >= 1 else edge_budget(1 - share, total)
        outcome = bed.run(Circuit.cut(found.scores, count).kept)
        value = reached[count] = summarise([outcome], bed.full, bed.corrupted).faithfulness.value
        if value is not None and value >= faithfulness:
            return ScoredModel(found, replace(found, count=count), reached)
    return ScoredModel(found, None, reached)


def resampled_scores(
    bench: Workbench, method: Method, resamples: int = 10, seed: int = 0, scorer: Resampler | None = None
) -> Resampled:
    """Scores on all training pairs and on resamples; the same resamples for every model with equal seeds."""
    score, count = scorer or Resampler(bench, method), len(bench.data.train)
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(count, (count,), generator=generator).tolist() for _ in range(resamples)]
    return Resampled(score.scores, [score(picked) for picked in rows], bench.count)


def facts_of(base: Workbench, method: Method, seed: int) -> dict[str, Any]:
    """What results of comparisons say of themselves: task, method, ablation, seed, base model and its edges."""
    return {
        "task": base.data.splits.name,
        "method": method.name,
        "ablation": base.references.kind,
        "seed": seed,
        "base": base.subject.origin,
        "n_edges_total": base.subject.graph.n_edges,
    }
