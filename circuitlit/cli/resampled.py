"""A method's scores on resamples of the training pairs, at the cost of one pass where it scores pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from inspect import signature

import torch
from hydra.utils import instantiate
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from circuitlit.cli.build import Workbench, attribute
from circuitlit.graph import EdgeScores

LARGEST = 2 * 2**30  # bytes of all pairs' scores


class Resampler:
    """Scores of some training pairs, repeats included, as `attribute` has them but for rounding.

    Args:
        cfg: the method's settings.
        bench: subject, pairs and masked model.
    """

    def __init__(self, cfg: DictConfig, bench: Workbench) -> None:
        self._cfg, self._bench = cfg, bench

    @property
    def scores(self) -> EdgeScores:
        """On all training pairs."""
        return self._pairs[0] if self._by_pair else attribute(self._cfg, self._bench)

    def __call__(self, rows: Sequence[int]) -> EdgeScores:
        """On the pairs of these numbers."""
        if not self._by_pair:
            return attribute(self._cfg, self._bench, rows)
        scores, each = self._pairs
        counts = torch.bincount(torch.tensor(rows), minlength=len(each)).to(each.dtype)
        values = (counts @ each.flatten(1)).view_as(scores.values) / len(rows)
        return replace(scores, values=values, details={**scores.details, "pairs": len(rows)})

    @cached_property
    def _by_pair(self) -> bool:
        train, layout, method = self._bench.data.train, self._bench.layout, self._cfg.method
        all_seen = method.max_batches is None or method.max_batches * self._cfg.data.batch_size >= len(train)
        fits = 4 * len(train) * layout.copies * layout.graph.n_edges <= LARGEST
        return all_seen and fits and "each" in signature(instantiate(method.score)).parameters

    @cached_property
    def _pairs(self) -> tuple[EdgeScores, Float[Tensor, "pair copies edge"]]:
        """Scores of all pairs together and of each alone."""
        found: list[Tensor | None] = [None] * len(self._bench.data.train)

        def keep(index: Tensor, scores: Tensor) -> None:
            for pair, own in zip(index.tolist(), scores, strict=True):
                found[pair] = own

        scores = attribute(self._cfg, self._bench, each=keep)
        return scores, torch.stack([own for own in found if own is not None])
