"""What a set of series says to the published account of circuits over training, claim by claim.

Source of the claims: Tigges et al. 2024, "LLM Circuit Analyses Are Consistent Across Training and Scale"
(arXiv 2407.10827), on Pythia models of 70 million to 2.8 billion parameters. Models trained on other text, much smaller
ones in particular, can only agree or disagree in kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from circuitlit.evaluate.testing import LEVEL, benjamini_hochberg
from circuitlit.timeline.emergence import (
    LEAST_SIZES,
    Between,
    SizeRow,
    Trend,
    trend,
    trend_of_overlaps,
    trend_of_times,
    within,
)
from circuitlit.timeline.evolution import Claim, SeriesEvolution, TaskEvolution
from circuitlit.timeline.handovers import Handover, Held, beyond_chance

Verdict = Literal["agrees", "disagrees", "undecided", "not measurable"]
UNMEASURABLE: Verdict = "not measurable"
ALIKE = 2.0  # largest ratio of token counts that counts as the same


def account(series: Sequence[SeriesEvolution], sizes: Sequence[SizeRow], tasks: Sequence[str]) -> list[Claim]:
    """Every claim that can be asked of these series.

    Args:
        series: training runs.
        sizes: of `by_size`.
        tasks: their names.
    """
    found: list[Claim] = []
    if len(sizes) > 1:
        found += _same_tokens(sizes, tasks)
        found += _with_size(series, tasks)
    found += _together(series, tasks)
    found += _handed_over(series, tasks)
    return found


def _same_tokens(sizes: Sequence[SizeRow], tasks: Sequence[str]) -> Iterator[Claim]:
    asked = [("heads", "induction", "induction heads"), *(("emerged", task, f"the task {task}") for task in tasks)]
    for kind, key, name in asked:
        found = [one for row in sizes if (one := getattr(row, kind).get(key)) is not None]
        text = f"in all seeds of {sum(one.value is not None for one in found)} of {len(sizes)} sizes"
        ends = [Between(one.low, math.inf if one.high is None else one.high) for one in found]
        same = within(ends, ALIKE) if len(ends) > 1 else None
        if len(ends) > 1:
            text += f"; between checkpoints that leave {_ratios(ends)} for the latest over the earliest"
        about = f"emergence after the same number of tokens at every size: {name}"
        yield Claim(claim=about, measured=text, verdict=_verdict(same))


def _ratios(times: Sequence[Between]) -> str:
    """The least and largest ratio of the latest to the earliest time."""
    first, last = min(one.low for one in times), max(one.high for one in times)
    least = max(1.0, max(one.low for one in times) / min(one.high for one in times))
    most = math.inf if first == 0 else last / first
    return f"{least:.1f} or more" if math.isinf(most) else f"{least:.1f} to {most:.1f}"


def _verdict(holds: bool | None) -> Verdict:
    return "undecided" if holds is None else "agrees" if holds else "disagrees"


def _with_size(series: Sequence[SeriesEvolution], tasks: Sequence[str]) -> Iterator[Claim]:
    """Correlations; their p are corrected for one another."""
    claims = {
        "nodes": "circuits have more nodes in larger models",
        "stability": "circuits of larger models change less from checkpoint to checkpoint",
    }
    found = {f"{claims[name]} ({task})": trends(series, task)[name] for name in claims for task in tasks}
    tested = {claim: one.p for claim, one in found.items() if one.p is not None}
    corrected = dict(zip(tested, benjamini_hochberg(list(tested.values())), strict=True))
    for claim, one in found.items():
        if one.r is None or claim not in corrected:
            few = f"{one.sizes} sizes with a value; {LEAST_SIZES} can tell a correlation from chance"
            unknown = UNMEASURABLE if one.sizes < LEAST_SIZES else "undecided"
            yield Claim(claim=claim, measured=few, verdict=unknown)
            continue
        p = corrected[claim]
        text = f"r with log size {one.r:.2f} over {one.sizes} sizes ({one.models} models), corrected p {p:.3f}"
        yield Claim(claim=claim, measured=text, verdict=_verdict(one.r > 0 if p <= LEVEL else None))


def trends(series: Sequence[SeriesEvolution], task: str) -> dict[str, Trend]:
    """How emergence, circuit size and stability of a task go with the number of parameters."""
    known = [one for one in series if one.n_parameters is not None]
    parameters = [one.n_parameters or 0 for one in known]
    learned = [one.tasks[task].learned for one in known]
    found = {name: trend(parameters, [getattr(own, name) for own in learned]) for name in ("nodes", "edges")}
    found["stability"] = trend_of_overlaps(parameters, [own.stability for own in learned])
    begun = [
        (size, at) for size, one in zip(parameters, known, strict=True) if (at := one.tasks[task].emerged) is not None
    ]
    found["emergence"] = trend_of_times([size for size, _ in begun], [Between.of(at) for _, at in begun])
    return found


def _together(series: Sequence[SeriesEvolution], tasks: Sequence[str]) -> Iterator[Claim]:
    """Behaviour and the heads that carry it; asked of induction, where both are measured."""
    if "induction" not in tasks:
        return
    found = [(one.tasks["induction"].emerged, one.heads.emerged.get("induction")) for one in series]
    close = [
        within([Between.of(task), Between.of(heads)], ALIKE)
        for task, heads in found
        if task is not None and heads is not None and (task.at is not None or heads.at is not None)
    ]
    claim = "a behaviour emerges together with the heads that carry it (induction)"
    if not close:
        yield Claim(claim=claim, measured="seen to emerge in no series", verdict="undecided")
        return
    counts = f"surely in {close.count(True)}, surely not in {close.count(False)} of {len(close)} series"
    holds = False if False in close else None if None in close else True
    text = f"within a factor of {ALIKE:g} of each other {counts}"
    yield Claim(claim=claim, measured=text, verdict=_verdict(holds))


def _handed_over(series: Sequence[SeriesEvolution], tasks: Sequence[str]) -> Iterator[Claim]:
    """Heads that lose a role in a circuit while others get it, beside how often that happens at other times."""
    kept = [[entry for task in tasks if _kept(entry := one.tasks[task])] for one in series]
    roles = [[Held.of(role) for entry in own for role in entry.roles.values()] for own in kept]
    losses = sum(len(role.losses) for own in roles for role in own)
    claim = "heads of a circuit lose their role to others while the behaviour stays"
    if not losses:
        text = "no loss of a role in a circuit whose behaviour stays"
        yield Claim(claim=claim, measured=text, verdict="undecided")
        return
    taken = sum(role.succeeded() for own in roles for role in own)
    expected, p = beyond_chance(roles)
    text = f"{losses} losses of a role without harm, another head gets it meanwhile in {taken}; "
    if p is None:
        text += "too few checkpoints to tell that from chance"
        yield Claim(claim=claim, measured=text, verdict=UNMEASURABLE)
        return
    text += f"moved to random times, in {expected:.1f}, p {p:.3f}"
    yield Claim(claim=claim, measured=text, verdict=_verdict(True if p <= LEVEL else None))


def _kept(entry: TaskEvolution) -> bool:
    """Whether accuracy at the last checkpoint is nine tenths of the best one, or more."""
    values = [row.behaviour.accuracy.value or 0.0 for row in entry.rows]
    return bool(values) and values[-1] >= 0.9 * max(values)


def handover_rows(series: Sequence[SeriesEvolution], tasks: Sequence[str]) -> Iterator[tuple[str, str, str, Handover]]:
    """Every loss of a role in a circuit: series, task, role, and the head with who got it meanwhile."""
    for one in series:
        for task in tasks:
            for role, found in one.tasks[task].roles.items():
                for row in found.handovers:
                    yield one.name, task, role, row
