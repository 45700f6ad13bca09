"""The table of launch/pruning_table.sh: KL and the task's figure against sparsity, a line a method.

python launch/pruning_table.py FOLDER: reads FOLDER/*/study.json, writes FOLDER/table.md and prints it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from circuitlit.evaluate.statistics import Estimate
from circuitlit.evaluate.study.results import LearnedMinusAttribution, MethodRow, MethodStudy, StudiedTask
from circuitlit.report.table import Metric, percent

Figure = Callable[[MethodRow | StudiedTask], Estimate | None]
RECIPE = "recipe of 2024"  # its entries differ by target; each stands at the sparsities that it is for


def published(name: str, side: str = "full") -> Figure:
    """One of the task's published measures; of a task that of the full model."""

    def of(row: MethodRow | StudiedTask) -> Estimate | None:
        own = (row.published or {}).get(side, {}) if isinstance(row, StudiedTask) else row.published or {}
        return own.get(name)  # type: ignore[return-value]

    return of


FIGURES: dict[str, dict[str, Figure]] = {
    "ioi": {
        "KL, nats": lambda row: row.full.kl if isinstance(row, StudiedTask) else row.kl,
        "logit difference": lambda row: row.full.logit_diff if isinstance(row, StudiedTask) else row.logit_diff,
    },
    "greater_than_years": {
        "KL, nats": lambda row: row.full.kl if isinstance(row, StudiedTask) else row.kl,
        "probability difference over the century": published("prob_diff_years"),
        "within ten years of the start": published("prob_diff_10"),
        "Kendall's tau to the model": published("kendall_tau"),
    },
}


def main() -> None:
    """Read, write, print."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1])
    studies = [MethodStudy.load(path) for path in sorted(folder.glob("*/study.json"))]
    if not studies:
        raise SystemExit(f"there is no {folder}/*/study.json; name the folder of launch/pruning_table.sh")
    models = dict.fromkeys(study.model for study in studies)
    text = "\n".join(line for model in models for line in lines([s for s in studies if s.model == model]))
    (folder / "table.md").write_text(text + "\n")
    print(text)


def lines(studies: Sequence[MethodStudy]) -> Iterator[str]:
    """All tables of one model."""
    for task in {one.task: one for study in studies for one in study.tasks}.values():
        rows = [row for study in studies for row in study.methods if row.task == task.task]
        shared = Counter(row.sparsity for row in rows)
        sizes = sorted(size for size, methods in shared.items() if methods > 1)  # one that a method has alone it chose
        for title, figure in FIGURES.get(task.task, FIGURES["ioi"]).items():
            yield f"\n### {studies[0].model}, {task.task}: {title}\n"
            yield "| method | " + " | ".join(percent(size) for size in sizes) + " |"
            yield "|---|" + "---|" * len(sizes)
            for method in dict.fromkeys(label(row) for row in rows):
                own = {row.sparsity: row for row in rows if label(row) == method}
                if any(size in own for size in sizes):
                    yield f"| {method} | " + " | ".join(cell(own.get(size), figure) for size in sizes) + " |"
            yield f"| full model | {cell(task, figure)} |" + " |" * (len(sizes) - 1)
            if title.startswith("KL"):
                yield from differences(
                    [one for s in studies for one in s.learned_minus_attribution_kl], task.task, sizes
                )
        yield from own_sizes(studies[0].model, task, [row for row in rows if row.sparsity not in sizes])


def differences(all_tasks: Sequence[LearnedMinusAttribution], task: str, sizes: Sequence[float]) -> Iterator[str]:
    """KL of what was learned minus that of the attribution that is best on validation pairs, pair by pair."""
    own = [one for one in all_tasks if one.task == task]
    for learner in dict.fromkeys(short(one.learner) for one in own):
        at = {one.sparsity: one for one in own if short(one.learner) == learner}
        yield f"| {learner} minus the better attribution | " + " | ".join(said(at.get(size)) for size in sizes) + " |"


def own_sizes(model: str, task: StudiedTask, rows: Sequence[MethodRow]) -> Iterator[str]:
    """Circuits whose size their method chose."""
    if not rows:
        return
    figures = FIGURES.get(task.task, FIGURES["ioi"])
    yield f"\n### {model}, {task.task}: at the sizes that methods choose\n"
    yield "| method | removed | edges | " + " | ".join(figures) + " | seconds |"
    yield "|---|---|---|" + "---|" * len(figures) + "---|"
    for row in sorted(rows, key=lambda row: (row.method, row.sparsity)):
        cells = " | ".join(cell(row, figure) for figure in figures.values())
        yield f"| {row.method} | {percent(row.sparsity)} | {row.n_edges:,} | {cells} | {row.seconds:.0f} |"


def short(method: str) -> str:
    """Its name without its target."""
    return RECIPE if method.startswith(RECIPE) else method


def label(row: MethodRow) -> str:
    """Of a method's line; several seeds say so."""
    name = short(row.method)
    return f"{name}, mean of {row.n_circuits}" if row.n_circuits > 1 else name


def cell(row: MethodRow | StudiedTask | None, figure: Figure) -> str:
    """One of a row's figures; a dash without one."""
    return said(figure(row) if row is not None else None) or "-"


def said(estimate: Estimate | None) -> str:
    """A value with its interval for new sentences, or, where there is none, for other pairs; empty without one."""
    found = Metric.of(estimate)
    return f"{found.text()} {found.sentences() or found.interval()}".strip() if estimate is not None else ""


if __name__ == "__main__":
    main()
