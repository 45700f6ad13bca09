"""From the cells of a study to its result: means over pairs and seeds, overlaps, paired differences."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.evaluate.agreement import LEAST_ERRORS, Agreements
from circuitlit.evaluate.fewest import fewest_edges
from circuitlit.evaluate.similarity import Spread, consensus
from circuitlit.evaluate.statistics import LEVEL, Estimate, Statistic, mean_estimate, statistic
from circuitlit.evaluate.study.cells import Cell, Circuits, Cut, Match, StudySettings, TaskEnds, outcome_of
from circuitlit.evaluate.study.rankings import rankings
from circuitlit.evaluate.study.results import (
    Consensus,
    FailedCell,
    FewestEdges,
    LearnedMinusAttribution,
    MethodRow,
    MethodStudy,
    StudiedTask,
    Wins,
)
from circuitlit.evaluate.summary import summarise
from circuitlit.graph import Circuit
from circuitlit.objective import Outcome
from circuitlit.store import Failure

AREAS = ("cpr", "cmd", "cpr_anchored", "cmd_anchored")
Finished = list[tuple[Cell, TaskEnds | Circuits | Failure]]
Done = list[tuple[Cell, Circuits]]
Group = list[tuple[Cell, Circuits, Cut]]  # of several seeds, or of several random circuits


def summarise_study(finished: Finished, model: str, circuits: Path, settings: StudySettings) -> MethodStudy:
    """All that the table, the figures and a reader want of a study.

    Args:
        finished: every cell with its content.
        model: name of the model.
        circuits: folder of the cells' circuits.
        settings: of the study.

    Raises:
        UserError: there is no circuit.
    """
    failed = [FailedCell(cell=cell.name, error=c.error) for cell, c in finished if isinstance(c, Failure)]
    tasks = {cell.task: content for cell, content in finished if isinstance(content, TaskEnds)}
    done: Done = [(cell, c) for cell, c in finished if isinstance(c, Circuits) and cell.task in tasks]
    if not done:
        first = failed[0].error if failed else "none is finished"
        raise UserError(f"study: no cell could be run; the first: {first}")
    paired = _paired(done)
    rows = [
        _row(cell, sparsity, group, tasks[cell.task], settings.consensus, circuits)
        for (cell, sparsity), group in _grouped(done).items()
    ]
    return MethodStudy(
        status="FAILED" if failed else "OK",
        model=model,
        tasks=[_ends(name, content) for name, content in tasks.items()],
        methods=rows,
        learned_minus_attribution_kl=[item for item, _ in paired],
        wins=_wins(paired, tasks),
        rankings=rankings(rows),
        fewest_edges=_fewest(done, settings.match, settings.curve_pairs) if settings.match else [],
        failed=failed,
    )


def _grouped(done: Done) -> dict[tuple[Cell, float], Group]:
    """The rows of all seeds of one method, task and sparsity, in the order of the cells."""
    groups = defaultdict(list)
    for cell, content in done:
        for row in content.rows:
            groups[Cell(cell.task, cell.kind, cell.method), row.sparsity].append((cell, content, row))
    return groups


def _ends(name: str, content: TaskEnds) -> StudiedTask:
    full, corrupted = outcome_of(content.full), outcome_of(content.corrupted)
    return StudiedTask(
        task=name,
        n_pairs=content.n_pairs,
        n_train=content.n_train,
        n_edges_total=content.n_edges_total,
        full=summarise([full], full, corrupted),
        corrupted=summarise([corrupted], full, corrupted),
        published=_published_ends(content),
    )


def _row(cell: Cell, sparsity: float, group: Group, task: TaskEnds, share: float, circuits: Path) -> MethodRow:
    outcomes = [outcome_of(row.by_pair) for _, _, row in group]
    first = group[0][2]
    reachable = [row.n_edges_reachable for _, _, row in group if row.n_edges_reachable is not None]
    curves = [content.curve for _, content, _ in group if content.curve]
    alike = cell.kind == "learner" and len(group) > 1
    return MethodRow(
        task=cell.task,
        method=cell.method,
        kind=cell.kind,
        sparsity=sparsity,
        n_edges=first.n_edges,
        n_edges_reachable=_mean(reachable) if reachable else None,
        n_circuits=len(group),
        n_pairs=len(outcomes[0].kl),
        ranking=first.ranking,
        seconds=sum(content.seconds for _, content, _ in group) / len(group),
        **vars(summarise(outcomes, outcome_of(task.full), outcome_of(task.corrupted))),
        **{name: _envelope([getattr(curve, name) for curve in curves]) for name in AREAS if curves},
        noise=first.noise,
        published=_published(group, task),
        agreement=None if cell.kind == "control" else _agreement(outcomes, outcome_of(task.full)),
        **(_overlap([circuits / cell.name for cell, _, _ in group], first, share) if alike else {}),
    )


def _published_ends(content: TaskEnds) -> dict[str, dict[str, Estimate]] | None:
    found = content.published
    if found is None:
        return None
    groups = torch.tensor(found["groups"]["group"])
    ends = {side: found[side] for side in ("full", "corrupted")}
    return {
        side: {name: mean_estimate(_tensor(values), groups) for name, values in own.items()}
        for side, own in ends.items()
    }


def _published(group: Group, task: TaskEnds) -> dict[str, Estimate] | None:
    """Of one circuit, or means over those of several seeds."""
    measured = [row.published for _, _, row in group if row.published is not None]
    if not measured or task.published is None:
        return None
    groups = torch.tensor(task.published["groups"]["group"])
    columns = {name: [_tensor(one[name]) for one in measured] for name in measured[0]}
    return {
        name: mean_estimate(torch.stack(values) if len(values) > 1 else values[0], groups)
        for name, values in columns.items()
    }


def _tensor(values: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)


def _agreement(outcomes: list[Outcome], full: Outcome) -> Agreements:
    """Of one circuit, or over those of several seeds, each on all pairs."""
    count = len(outcomes)
    return Agreements.of(Outcome.join([full] * count), Outcome.join(outcomes), least=count * LEAST_ERRORS)


def _overlap(folders: Sequence[Path], row: Cut, share: float) -> dict[str, Any]:
    """How alike the circuits of several seeds are."""
    circuits = [Circuit.load(folder) for folder in folders]
    circuits = [
        own if own.n_edges == row.n_edges else Circuit.cut(own.scores, row.n_edges, select=row.select or "top_k")  # type: ignore[arg-type]
        for own in circuits
    ]
    common, every = consensus(circuits, share), consensus(circuits, 1.0)
    return {
        "seeds_overlap": Spread.of([circuit.kept for circuit in circuits]),
        "consensus": Consensus(
            share=share,
            n_edges=common.n_edges,
            n_edges_reachable=common.n_reachable,
            n_edges_in_all=every.n_edges,
        ),
    }


def _envelope(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of the seeds' values, and an interval that holds all of theirs."""
    known = [one for one in estimates if one.value is not None]
    if not known:
        return Estimate()
    ends = [
        None if None in (own := [getattr(one, name) for one in known]) else end(own)
        for name, end in (("low", min), ("high", max), ("low_sentences", min), ("high_sentences", max))
    ]
    return Estimate(_mean(one.value for one in known), *ends)


def _paired(done: Done) -> list[tuple[LearnedMinusAttribution, Statistic]]:
    """KL of each learner minus KL of the best attribution, pair by pair, by task and sparsity, and what it is made of.

    The attribution is chosen on validation pairs, and a learner's KL is the mean over its seeds.
    """
    groups = _grouped(done)
    found = []
    for task, sparsity in dict.fromkeys((cell.task, sparsity) for cell, sparsity in groups):
        here = {cell: group for (cell, at), group in groups.items() if (cell.task, at) == (task, sparsity)}
        attributions = {cell.method: group[0][2] for cell, group in here.items() if cell.kind == "attribution"}
        learners = {cell.method: group for cell, group in here.items() if cell.kind == "learner"}
        for (learner, group), best in product(learners.items(), _best(attributions)):
            ours = torch.stack([outcome_of(row.by_pair).kl for _, _, row in group])
            theirs = outcome_of(attributions[best].by_pair)
            difference = statistic(lambda means: means[0], (ours - theirs.kl)[None], theirs.group)
            names = {"task": task, "sparsity": sparsity, "learner": learner, "attribution": best}
            own = LearnedMinusAttribution(**names, n_seeds=len(group), **vars(difference.estimate()))
            found.append((own, difference))
    return found


def _wins(paired: Sequence[tuple[LearnedMinusAttribution, Statistic]], tasks: Mapping[str, TaskEnds]) -> list[Wins]:
    """On how many tasks a learner's KL is clearly below, and clearly above, that of the best attribution.

    Intervals are widened for all comparisons of the study (Bonferroni). Of a single pair none is clear.
    """
    found: dict[tuple[str, float], dict[str, list[str]]] = {}
    for item, difference in paired:
        sides = found.setdefault((item.learner, item.sparsity), {"won": [], "lost": [], "open": []})
        bounds = difference.estimate(1 - (1 - LEVEL) / len(paired)).bounds
        low, high = bounds if bounds and tasks[item.task].n_pairs > 1 else (-math.inf, math.inf)
        sides["won" if high < 0 else "lost" if low > 0 else "open"].append(item.task)
    return [Wins(learner=learner, sparsity=sparsity, **sides) for (learner, sparsity), sides in found.items()]


def _fewest(done: Done, match: Match, pairs: int) -> list[FewestEdges]:
    """The edges that each method needs for the KL of one attribution at one sparsity, on the same test pairs.

    A learner is taken at the sparsity from which it needs fewest edges on validation pairs, mean over its seeds; where
    the task has none, at the first one.
    """
    targets = {}
    for cell, content in done:
        if (cell.kind, cell.method) == ("attribution", match.method):
            row = next((row for row in content.rows if row.sparsity == match.sparsity), content.rows[0])
            targets[cell.task] = row.n_edges, _mean(row.by_pair["kl"][:pairs]), row.val_kl
    needed: dict[tuple[str, str], dict[float | None, list[tuple[float | None, float | None]]]] = {}
    for cell, content in done:
        if content.kl_by_size and cell.task in targets:
            _, kl, val = targets[cell.task]
            on_val = None if val is None else fewest_edges(content.val_kl_by_size, val)
            own = on_val, fewest_edges(content.kl_by_size, kl)
            needed.setdefault((cell.task, cell.method), {}).setdefault(cell.sparsity, []).append(own)
    found = []
    for (task, method), by_sparsity in needed.items():
        edges, kl, _ = targets[task]
        chosen_by, reported = ({at: _mean(r[i] for r in runs) for at, runs in by_sparsity.items()} for i in (0, 1))
        best = min(chosen_by, key=lambda at: chosen_by[at] or math.inf)
        least = reported[best]
        found.append(
            FewestEdges(
                task=task,
                method=method,
                kl=kl,
                attribution=match.method,
                attribution_edges=edges,
                n_edges=least,
                times_fewer=edges / least if least else None,
                trained_at=best,
            )
        )
    return found


def _mean(values: Iterable[float | None]) -> Any:
    """Mean; None where one of them does not exist."""
    known = list(values)
    return None if None in known else sum(known) / len(known)  # type: ignore[arg-type]


def _best(attributions: dict[str, Cut]) -> list[str]:
    """The attribution of least KL on validation pairs; without those all, for none can be chosen fairly."""
    judged = {name: row.val_kl for name, row in attributions.items() if row.val_kl is not None}
    return [min(judged, key=lambda name: judged[name])] if judged else list(attributions)
