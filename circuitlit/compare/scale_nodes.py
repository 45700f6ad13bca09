"""What nodes write, scaled: dose and response, beside random sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from circuitlit.compare.effects import PairBed, changed_logits, scaled, text_kl
from circuitlit.compare.intervention_case import Case
from circuitlit.compare.intervention_figures import Dose, Enhancement
from circuitlit.evaluate.statistics import mean_estimate, mean_of
from circuitlit.evaluate.testing import monotonicity, rank_p, slope, until_clear
from circuitlit.tasks.pair import Batch


def scale(case: Case, doses: list[float]) -> Enhancement:
    """Dose and response of the chosen nodes and of random sets."""
    writers, batches = case.writers, case.bed.batches
    bed, small = PairBed(case.subject, batches), PairBed(case.subject, _first(batches, case.control_pairs))
    rows, first = [], []  # what changes on the pairs that random sets see, too
    for dose in doses:
        outcome = bed.measure(scaled(writers, case.chosen, dose))
        kl = text_kl(case.subject, case.text, _dosed(case, dose))
        change = mean_estimate(outcome.metric - bed.full.metric, outcome.group)
        metric = mean_estimate(outcome.metric, outcome.group)
        first.append(float((outcome.metric - bed.full.metric)[: len(small.full.kl)].mean()))
        rows.append(Dose(dose, metric, change, float(outcome.kl.mean()), mean_estimate(kl, None)))
    responses = [row.change.value or 0.0 for row in rows]
    own = abs(slope(doses, first))

    def dosed(members: Sequence[str]) -> list[float]:
        outcomes = (small.measure(scaled(writers, members, dose)) for dose in doses)
        return [float((outcome.metric - small.full.metric).mean()) for outcome in outcomes]

    random = until_clear([own], map(dosed, case.sets()), lambda values: [abs(slope(doses, values))])
    slopes = [slope(doses, values) for values in random]
    return Enhancement(
        nodes=case.chosen,
        doses=rows,
        slope=slope(doses, responses),
        monotonicity=monotonicity(doses, responses),
        best_dose=max(rows, key=lambda row: row.metric.value or 0.0).dose,
        random_changes=random,
        random_slope=mean_of(slopes),
        random_monotonicity=mean_of([monotonicity(doses, values) for values in random]),
        rank_p=rank_p(own, [abs(value) for value in slopes]),
    )


def _dosed(case: Case, dose: float) -> Callable[[], Tensor]:
    return lambda: changed_logits(case.writers, case.text, case.chosen, lambda _node, own: own * dose)


def _first(batches: list[Batch], pairs: int) -> list[Batch]:
    """As many of the batches as hold the first pairs."""
    taken, seen = [], 0
    for batch in batches:
        if seen >= pairs:
            break
        taken.append(batch)
        seen += len(batch)
    return taken
