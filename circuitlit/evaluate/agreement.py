"""Does a circuit say what the model says? Asked apart where the model is right and where it is wrong.

A circuit that is faithful agrees with both; one that idealises the model agrees with its right answers alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.evaluate.statistics import Estimate, Function, statistic
from circuitlit.objective import Outcome

LEAST_ERRORS = 50  # of the model, below which nothing is said of them


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How often a circuit says exactly what the model says; None where that cannot be measured.

    Attributes:
        n_right, n_wrong: pairs that the model gets right, and wrong, of those that the circuit ran on.
        reason: why nothing is said of its wrong answers.
        accuracy: of the model, share.
        right, wrong: agreement with its right and its wrong answers, shares; 1 and 1 is faithful, 1 and 0 idealised.
        gap: `right` less `wrong`; 0 is faithful, 1 idealised.
        wrong_too: share of the model's errors on which the circuit is wrong as well, with whatever answer.
        kappa: Cohen's, of right and wrong: 1 errs on the same pairs, 0 as chance has it (as a circuit that never errs
            does); does not exist where the model always errs.
        kl_right, kl_wrong: KL(model || circuit) on either, nats.

    Source: arXiv 2609.35686, agreement apart; Cohen, Educational and Psychological Measurement 20 (1960), kappa.
    """

    n_right: int
    n_wrong: int
    reason: str | None = None
    accuracy: Estimate | None = None
    right: Estimate | None = None
    wrong: Estimate | None = None
    gap: Estimate | None = None
    wrong_too: Estimate | None = None
    kappa: Estimate | None = None
    kl_right: Estimate | None = None
    kl_wrong: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class Agreements:
    """Agreement by two ways to say something.

    Attributes:
        candidates: which of answer and wrong answer, or of the choices, has the highest logit; None where pairs have
            no wrong answer.
        vocabulary: which token of all.
    """

    candidates: Agreement | None = None
    vocabulary: Agreement | None = None

    @classmethod
    def of(
        cls, full: Outcome, circuit: Outcome, weights: Float[Tensor, "pair"] | None = None, least: int = LEAST_ERRORS
    ) -> Agreements:
        """Compare a circuit with the full model on the same pairs.

        Args:
            full, circuit: on all pairs.
            weights: how many pairs each one stands for, where some kinds were drawn more often than others.
            least: errors of the model below which nothing is said of them.
        """
        weights = torch.ones(len(full.kl)) if weights is None else weights
        known = ~full.margin.isnan() & ~circuit.margin.isnan()
        candidates = None
        if bool(known.any()):
            asked, ours = full.rows(known), circuit.rows(known)
            told = asked.margin > 0, ours.margin > 0, asked.said == ours.said
            candidates = _agreement(*told, ours, weights[known], least)
        told = full.accuracy > 0, circuit.accuracy > 0, circuit.exact_match > 0
        return cls(candidates=candidates, vocabulary=_agreement(*told, circuit, weights, least))


def _agreement(
    right: Tensor, circuit_right: Tensor, same: Tensor, circuit: Outcome, weights: Float[Tensor, "pair"], least: int
) -> Agreement:
    """Ratios of weighted means; all resamples but those of accuracy keep the numbers of right and wrong answers."""
    wrong = ~right
    n_right, n_wrong = int(right.sum()), int(wrong.sum())
    agree = right == circuit_right
    parts = (
        *(right, right & same, right * circuit.kl),
        *(wrong, wrong & same, wrong * circuit.kl, wrong & ~circuit_right),
        *(agree, circuit_right, torch.ones_like(right)),
    )
    columns = torch.stack([part.double() * weights for part in parts])

    def of(function: Function) -> Estimate:
        return statistic(function, columns, circuit.group, strata=right.long()).estimate()

    accuracy = statistic(lambda m: m[0] / m[9], columns, circuit.group).estimate()
    shown = {"n_right": n_right, "n_wrong": n_wrong, "accuracy": accuracy}
    if n_right:
        shown |= {"right": of(lambda m: m[1] / m[0]), "kl_right": of(lambda m: m[2] / m[0])}
    if n_wrong < least:
        errs = f"the model errs on {weights[wrong].sum():.0f} of {weights.sum():.0f} pairs"
        return Agreement(**shown, reason=f"not measurable: {errs}, {least} errors are needed")
    shown |= {
        "wrong": of(lambda m: m[4] / m[3]),
        "kl_wrong": of(lambda m: m[5] / m[3]),
        "wrong_too": of(lambda m: m[6] / m[3]),
    }
    if not n_right:
        return Agreement(**shown)
    return Agreement(**shown, gap=of(lambda m: m[1] / m[0] - m[4] / m[3]), kappa=_exists(of(_kappa)))


def _kappa(m: Float[Tensor, "column *rest"]) -> Float[Tensor, "*rest"]:
    """Agreement on right and wrong beyond chance, from the means of `_agreement`."""
    model, circuit, agree = m[0] / m[9], m[8] / m[9], m[7] / m[9]
    chance = model * circuit + (1 - model) * (1 - circuit)
    return torch.where(chance < 1 - 1e-12, (agree - chance) / (1 - chance).clamp(min=1e-12), torch.nan)


def _exists(estimate: Estimate) -> Estimate | None:
    return None if estimate.value is None else estimate
