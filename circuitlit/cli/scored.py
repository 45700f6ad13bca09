"""A model's circuits on all training pairs and on resamples of them, for the verbs that compare models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from omegaconf import DictConfig

from circuitlit.cli.build import build_method
from circuitlit.compare import Resampled
from circuitlit.discover.workbench import Resampler, Workbench
from circuitlit.evaluate import TestBed, summarise
from circuitlit.graph import Circuit, EdgeScores
from circuitlit.graph.select import edge_budget


@dataclass(frozen=True)
class Side:
    """One of the two models, scored.

    Attributes:
        scores: on all training pairs.
        resamples: on resamples of them.
        matched: edges of the smallest circuit that is faithful enough, None where none is.
        faithfulness: of circuits of each size tried, on validation pairs.
    """

    scores: EdgeScores
    resamples: list[EdgeScores]
    matched: int | None
    faithfulness: dict[int, float | None]

    def at(self, count: int) -> Resampled:
        """Its circuits of some size."""
        return Resampled(self.scores, self.resamples, count)


def score_side(cfg: DictConfig, bench: Workbench) -> Side:
    """Scores on all training pairs and on resamples; the same resamples for every model of the run."""
    score, count = Resampler(bench, build_method(cfg)), len(bench.data.train)
    generator = torch.Generator().manual_seed(cfg.compare.seed)
    rows = [torch.randint(count, (count,), generator=generator).tolist() for _ in range(cfg.compare.resamples)]
    matched, faithfulness = _smallest(cfg, bench, score.scores)
    return Side(score.scores, [score(picked) for picked in rows], matched, faithfulness)


def _smallest(cfg: DictConfig, bench: Workbench, scores: EdgeScores) -> tuple[int | None, dict[int, float | None]]:
    """Edges of the smallest circuit tried that is as faithful as asked for, and what each size reaches."""
    pairs = bench.data.val if len(bench.data.val) else bench.data.train
    order = pairs.spread(cfg.compare.probe_pairs)
    bed = TestBed.build(bench.model, bench.fresh_references(), pairs.batches(cfg.data.eval_batch_size, order=order))
    reached: dict[int, float | None] = {}
    for share in sorted(cfg.compare.sizes):
        total = bench.layout.n_edge_masks
        count = total if share >= 1 else edge_budget(1 - share, total)
        outcome = bed.run(Circuit.cut(scores, count).kept)
        value = reached[count] = summarise([outcome], bed.full, bed.corrupted).faithfulness.value
        if value is not None and value >= cfg.compare.faithfulness:
            return count, reached
    return None, reached
