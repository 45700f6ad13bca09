"""Nodes transferred from a tuned model to its base: what they write, and their weights, beside random sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from circuitlit.compare.effects import PairBed, gain_share, model_text_kl, plain_logits, text_kl
from circuitlit.compare.intervention_case import Case
from circuitlit.compare.intervention_figures import Transfer, Transferred
from circuitlit.compare.transplant import Transplant
from circuitlit.evaluate.statistics import mean_estimate, mean_of
from circuitlit.evaluate.testing import rank_p, until_clear
from circuitlit.model.slices import withheld
from circuitlit.objective import Outcome


def transfer(case: Case, move: Transplant) -> Transfer:
    """The chosen nodes from tuned to base, what they write and their weights, beside random sets."""
    bed = PairBed(case.subject, case.bed.batches)
    tuned = bed.measure(lambda batch: plain_logits(move.donor, batch))
    gap = mean_estimate(tuned.metric - bed.full.metric, tuned.group)

    def written(nodes: Sequence[str]) -> tuple[Outcome, Tensor]:
        outcome = bed.measure(lambda batch: move.logits(nodes, batch.clean, batch.positions))
        return outcome, text_kl(case.subject, case.text, lambda: move.logits(nodes, case.text, None))

    def weighed(nodes: Sequence[str]) -> tuple[Outcome, Tensor]:
        with move.weights(nodes) as copy:
            outcome = bed.measure(lambda batch: plain_logits(copy, batch))
            return outcome, model_text_kl(case.subject, copy, case.text)

    def beside(way: Callable[[Sequence[str]], tuple[Outcome, Tensor]]) -> Transferred:
        outcome, text = way(case.chosen)
        own = gain_share(bed.full, tuned, outcome)
        others = until_clear(
            [own.value], map(way, case.sets()), lambda one: [gain_share(bed.full, tuned, one[0]).value]
        )
        shares = [gain_share(bed.full, tuned, other).value for other, _ in others]
        known = [share for share in shares if share is not None]
        return Transferred(
            gain_share=own,
            random_gain_share=mean_of(known) if known else None,
            rank_p=rank_p(own.value, known) if own.value is not None else None,
            collateral_kl=mean_estimate(text, None),
            random_collateral_kl=mean_estimate(torch.stack([kl.mean() for _, kl in others]), None),
            draws=len(known),
        )

    return Transfer(
        tuned=move.donor.origin,
        metric_gap=gap,
        gap_is_clear=gap.bounds is not None and gap.bounds[0] * gap.bounds[1] > 0,
        withheld=withheld(case.subject.graph, case.chosen),
        activations=beside(written),
        weights=beside(weighed),
    )
