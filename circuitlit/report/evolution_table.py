"""The evolution of circuits as a table in the terminal."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitlit.evaluate.testing import LEVEL
from circuitlit.report.backup import backup_text
from circuitlit.report.grid import grid
from circuitlit.report.overlap import overlap_sentence
from circuitlit.report.size_tables import size_tables, tokens_text
from circuitlit.report.stages import stages_text
from circuitlit.report.table import Metric, count
from circuitlit.timeline.cells import SmallestCircuit
from circuitlit.timeline.evolution import Evolution, Learned, SeriesEvolution, TaskEvolution


def print_evolution(result: Evolution, console: Console) -> None:
    """Print a table a series and task with its stages, the causal check, then everything by size, claims, errors."""
    for series in result.series:
        for task, entry in series.tasks.items():
            if entry.rows:
                console.print(_table(series, task, entry, result.faithfulness, console.width))
                console.print(Text(f"  {stages_text(entry.stages)}"), soft_wrap=True)
                console.print(Text(f"  {neighbours_text(entry.learned)}"), soft_wrap=True)
                for text in algorithm_lines(entry):
                    console.print(Text(f"  {text}"), soft_wrap=True)
        if series.heads.rows:
            console.print(_heads_table(series))
        for text in causal_lines(series):
            console.print(Text(f"  {text}"), soft_wrap=True)
    for title, headings, rows in size_tables(result):
        console.print(Text(title, "bold"), soft_wrap=True)
        table = grid(numbers=headings)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for claim in result.account:
        console.print(Text(f"  {claim.verdict}: {claim.claim}; {claim.measured}"), soft_wrap=True)
    for row in result.errors:
        text = f"ERROR {row.series}, {row.task}, step {row.step}: {row.reason}"
        console.print(Text(text, "bold red"), soft_wrap=True)


def _table(series: SeriesEvolution, task: str, entry: TaskEvolution, target: float, width: int) -> Table:
    """In a narrow terminal the accuracy stands without its interval."""
    total = entry.rows[0].n_edges_total
    wide, faithful = width >= 100, f"edges for\n{target:.0%}"
    headings = ("step", "tokens", "accuracy", faithful, "raw", "nodes", "J* to\nbefore", "J* to\nlast", "node J*\nEWMA")
    table = grid(f"{series.name}, {task}: {count(total)} edges", numbers=headings)
    for row in entry.rows:
        alike, smallest = row.likeness, row.faithful
        before, accuracy = alike.previous, Metric.of(row.behaviour.accuracy)
        table.add_row(
            count(row.step),
            tokens_text(row.tokens),
            str(accuracy) if wide else accuracy.text(),
            count(smallest.n_edges) if smallest else "FAILED" if row.status == "FAILED" else "-",
            _size(row.smallest_raw),
            count(smallest.n_nodes) if smallest else "-",
            _number(before and before.corrected_jaccard),
            _number(alike.last.corrected_jaccard),
            _number(alike.node_ewma),
        )
    return table


def neighbours_text(learned: Learned) -> str:
    """What circuits share with those of the checkpoint before, from emergence on."""
    if learned.shared is None:
        return "What neighbouring checkpoints share was not tested: fewer than two from emergence on."
    return f"Neighbouring checkpoints from emergence on, mean. {overlap_sentence(learned.shared)}"


def _heads_table(series: SeriesEvolution) -> Table:
    rows = series.heads.rows
    roles = list(rows[0].best)
    headings = ("step", "tokens", *(role.replace("_", "\n") for role in roles), "loss", "accu-\nracy")
    table = grid(f"{series.name}: best head score of each role, and repeated random tokens", numbers=headings)
    for row in rows:
        scores = [_number(row.best[role]) for role in roles]
        table.add_row(count(row.step), tokens_text(row.tokens), *scores, _number(row.loss), _number(row.accuracy))
    return table


def algorithm_lines(entry: TaskEvolution) -> list[str]:
    """The IOI algorithm at the last checkpoint where it was looked for: its shares and heads."""
    found = [(row.step, row.algorithm) for row in entry.rows if row.algorithm]
    if not found:
        return []
    step, last = found[-1]
    lines = [
        f"IOI algorithm at step {step:,}, {part}: {share.heads} heads have "
        f"{Metric.of(share.share)} of the effects of {last.of}, random ones {Metric.of(share.random)}"
        for part, share in last.shares.items()
    ]
    named = [f"{role.replace('_', ' ')} {' '.join(heads)}" for role, heads in last.roles.items() if heads]
    lost = [
        f"{row.head} was {role.replace('_', ' ')} at step {row.peak:,}, lost it by step "
        f"{row.lost:,}; who got it meanwhile: {' '.join(row.taken_over_by) or 'nobody'}"
        for role, one in entry.algorithm_roles.items()
        for row in one.handovers[:4]
    ]
    return [*lines, *(["; ".join(named)] if named else []), *lost, *backup_lines(entry)]


def backup_lines(entry: TaskEvolution) -> list[str]:
    """Who takes over from the name movers, checkpoint by checkpoint, as far as there are any."""
    found = [(row.step, row.algorithm.backup) for row in entry.rows if row.algorithm and row.algorithm.backup]
    known = [(step, backup) for step, backup in found if backup.status == "OK"]
    if not known:
        return [f"backup: no name movers with heads behind them at any of {len(found)} checkpoints"] if found else []
    sure = [step for step, backup in known if backup.p_holm is not None and backup.p_holm <= LEVEL]
    lines = [
        f"backup: somebody takes over from the name movers at {len(sure)} of {len(known)} checkpoints that have some"
    ]
    return lines + [f"backup at step {step:,}: {backup_text(asdict(backup))}" for step, backup in known]


def causal_lines(series: SeriesEvolution) -> list[str]:
    """Sentences on what ablating the induction heads removes."""
    causal = series.causal
    if causal is None:
        return []
    if causal.status != "OK":
        return [f"no causal check: {causal.reason}"]
    lines = []
    for name, check in (("loss", causal.loss), ("accuracy", causal.accuracy)):
        assert check is not None
        share, random = (100 * (value or 0.0) for value in (check.share, check.random_share))
        others = check.bystander_share
        bystanders = "" if others is None else f", of heads without any such pattern: {100 * others:.0f} %"
        lines.append(
            f"{', '.join(causal.heads)}, of {causal.n_heads} heads: ablated, {share:.0f} % of the gain in {name} "
            f"on repeated tokens is gone; {check.draws} random sets of as many others: {random:.0f} %{bystanders} "
            f"(difference {Metric.of(check.difference)}, intact {Metric.of(check.intact)}, "
            f"p = {check.p_holm:.2g})"
        )
    return lines


def _size(found: SmallestCircuit | None) -> str:
    return count(found.n_edges) if found and found.status == "OK" else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
