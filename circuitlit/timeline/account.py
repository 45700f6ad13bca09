"""What a set of series says to the published account of circuits over training, claim by claim.

Source of the claims: Tigges et al. 2024, "LLM Circuit Analyses Are Consistent Across Training and Scale"
(arXiv 2407.10827), on Pythia models of 70 million to 2.8 billion parameters. Models trained on other text, much smaller
ones in particular, can only agree or disagree in kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from circuitlit.timeline.emergence import Trend, trend

Verdict = Literal["agrees", "disagrees", "undecided"]
ALIKE = 2.0  # largest ratio of token counts that counts as the same


@dataclass(frozen=True)
class Claim:
    """One claim of the account.

    Attributes:
        claim: what is published.
        measured: what was found here.
        verdict: "undecided" where the data cannot tell.
    """

    claim: str
    measured: str
    verdict: Verdict


def account(series: Sequence[dict[str, Any]], sizes: Sequence[dict[str, Any]], tasks: Sequence[str]) -> list[dict]:
    """Every claim that can be asked of these series.

    Args:
        series: entries of evolve.json.
        sizes: of `by_size`.
        tasks: their names.
    """
    found: list[Claim] = []
    if len(sizes) > 1:
        found += _same_tokens(sizes, tasks)
        found += _with_size(series, tasks)
    found += _together(series, tasks)
    found += _handed_over(series, tasks)
    return [asdict(claim) for claim in found]


def _same_tokens(sizes: Sequence[dict[str, Any]], tasks: Sequence[str]) -> Iterator[Claim]:
    asked = [("heads", "induction", "induction heads"), *(("emerged", task, f"the task {task}") for task in tasks)]
    for kind, key, name in asked:
        at = [row[kind].get(key) for row in sizes]
        values = [one["value"] for one in at if one is not None]
        claim = f"emergence after the same number of tokens at every size: {name}"
        if len(values) < 2:
            yield Claim(claim, f"emerged at {len(values)} of {len(sizes)} sizes", "undecided")
            continue
        ratio = max(values) / min(values)
        text = f"at {len(values)} of {len(sizes)} sizes; latest over earliest {ratio:.1f}"
        same = ratio <= ALIKE and len(values) == len(sizes)
        yield Claim(claim, text, "agrees" if same else "disagrees")


def _with_size(series: Sequence[dict[str, Any]], tasks: Sequence[str]) -> Iterator[Claim]:
    claims = {
        "nodes": "circuits have more nodes in larger models",
        "stability": "circuits of larger models change less from checkpoint to checkpoint",
    }
    for name, claim in claims.items():
        for task in tasks:
            found = trends(series, task)[name]
            if found.r is None or found.low is None or found.high is None:
                yield Claim(f"{claim} ({task})", f"{found.n} models with a value", "undecided")
                continue
            verdict: Verdict = "agrees" if found.low > 0 else "disagrees" if found.high < 0 else "undecided"
            text = f"r of the logarithms {found.r:.2f} [{found.low:.2f}, {found.high:.2f}] over {found.n} models"
            yield Claim(f"{claim} ({task})", text, verdict)


def trends(series: Sequence[dict[str, Any]], task: str) -> dict[str, Trend]:
    """How emergence, circuit size and stability of a task go with the number of parameters."""
    known = [one for one in series if one["n_parameters"] is not None]
    parameters = [one["n_parameters"] for one in known]
    found = {
        name: trend(parameters, [one["tasks"][task]["learned"][name] for one in known])
        for name in ("nodes", "edges", "stability")
    }
    begun = [one["tasks"][task]["emerged"] for one in known]
    found["emergence"] = trend(parameters, [None if one is None else one["at"] for one in begun])
    return found


def _together(series: Sequence[dict[str, Any]], tasks: Sequence[str]) -> Iterator[Claim]:
    """Behaviour and the heads that carry it; asked of induction, where both are measured."""
    if "induction" not in tasks:
        return
    ratios = []
    for one in series:
        task, heads = one["tasks"]["induction"]["emerged"], one["heads"]["emerged"].get("induction")
        if task is not None and heads is not None:
            ratios.append(max(1.0, task["at"]) / max(1.0, heads["at"]))
    claim = "a behaviour emerges together with the heads that carry it (induction)"
    if not ratios:
        yield Claim(claim, "in no series both were seen to emerge", "undecided")
        return
    close = sum(1 / ALIKE <= ratio <= ALIKE for ratio in ratios)
    text = f"within a factor of {ALIKE:g} of each other in {close} of {len(ratios)} series"
    yield Claim(claim, text, "agrees" if close == len(ratios) else "disagrees")


def _handed_over(series: Sequence[dict[str, Any]], tasks: Sequence[str]) -> Iterator[Claim]:
    """Heads that lose a role in a circuit while others have it at the end."""
    rows = list(handover_rows(series, tasks))
    taken = sum(bool(row["taken_over_by"]) for row in rows)
    kept = [
        one["tasks"][row["task"]]["rows"][-1]["behaviour"]["accuracy"]["value"]
        >= 0.9 * max(r["behaviour"]["accuracy"]["value"] for r in one["tasks"][row["task"]]["rows"])
        for row in rows
        for one in series
        if one["name"] == row["series"] and row["taken_over_by"]
    ]
    claim = "heads of a circuit lose their role to others while the behaviour stays"
    text = f"{len(rows)} losses of a role in a circuit, {taken} with a successor, {sum(kept)} of them with accuracy kept"
    yield Claim(claim, text, "agrees" if sum(kept) else "disagrees" if rows else "undecided")


def handover_rows(series: Sequence[dict[str, Any]], tasks: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every loss of a role in a circuit: series, task, role, head, when it peaked and lost it, and who took over."""
    for one in series:
        for task in tasks:
            for role, found in one["tasks"][task]["roles"].items():
                for row in found["handovers"]:
                    yield {"series": one["name"], "task": task, "role": role, **row}
