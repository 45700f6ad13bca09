"""The methods of a study in order: by KL, by how stable their circuits are, by the model's errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from circuitlit.evaluate.study.results import MethodRanking, MethodRow


def _kl(row: MethodRow) -> float | None:
    return None if row.kl.value is None else -row.kl.value


def _over_pairs(row: MethodRow) -> float | None:
    return row.noise and row.noise.mean


def _over_seeds(row: MethodRow) -> float | None:
    return row.seeds_overlap and row.seeds_overlap.mean


def _errors(row: MethodRow) -> float | None:
    """Kappa between candidates, or, where the model errs on too few of those, over all tokens."""
    kinds = (row.agreement.candidates, row.agreement.vocabulary) if row.agreement else ()
    return next((one.kappa.value for one in kinds if one and one.kappa), None)


FIGURES: dict[str, Callable[[MethodRow], float | None]] = {
    "KL": _kl,
    "J* over resampled pairs": _over_pairs,
    "J* over seeds": _over_seeds,
    "kappa of errors": _errors,
}


def rankings(rows: Sequence[MethodRow]) -> list[MethodRanking]:
    """By every figure that at least two methods of a task and sparsity have; random circuits are no method."""
    found, methods = [], [row for row in rows if row.kind != "control"]
    for task, sparsity in dict.fromkeys((row.task, row.sparsity) for row in methods):
        here = [row for row in methods if (row.task, row.sparsity) == (task, sparsity)]
        for figure, of in FIGURES.items():
            known = sorted(((value, row.method) for row in here if (value := of(row)) is not None), reverse=True)
            if len(known) < 2:
                continue
            values = [abs(value) if figure == "KL" else value for value, _ in known]
            names = [name for _, name in known]
            found.append(MethodRanking(task=task, sparsity=sparsity, figure=figure, methods=names, values=values))
    return found
