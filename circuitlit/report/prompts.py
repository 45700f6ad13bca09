"""A comparison of prompts as a table and as one page: circuits down, prompts across."""

from __future__ import annotations

from html import escape
from pathlib import Path

from rich.console import Console
from rich.text import Text

from circuitlit.compare.prompts import PromptComparison
from circuitlit.report.grid import grid
from circuitlit.report.overlap import overlap_sentence
from circuitlit.report.simple_page import html_table, write_simple_page
from circuitlit.report.table import Metric, count

FIGURES = {"accuracy": "accuracy", "exact_match": "exact match", "kl": "KL (nats)"}


def print_prompts(result: PromptComparison, console: Console) -> None:
    """Print the table and the overlaps, or why there are none."""
    if result.reason:
        console.print(Text(f"{result.status}: {result.reason}", "bold red"), soft_wrap=True)
    if not result.circuits:
        return
    title = f"{result.model}{', tuned' if result.tuned else ''}: every circuit under every prompt, held-out pairs"
    headings, rows = cross_table(result, intervals=False)
    table = grid(title, headings[:1], headings[1:])
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for sentence in sentences(result):
        console.print(sentence, highlight=False)


def cross_table(result: PromptComparison, intervals: bool) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; a prompt's figures stand side by side."""
    headings = ["circuit", "edges", *(f"{words}, {task}" for words in FIGURES.values() for task in result.tasks)]
    rows = []
    for row in result.circuits:
        metrics = [Metric.of(getattr(row.on[task], key)) for key in FIGURES for task in result.tasks]
        rows.append([row.circuit, count(row.n_edges), *(str(m) if intervals else m.text() for m in metrics)])
    return headings, rows


def sentences(result: PromptComparison) -> list[str]:
    """Circuits beside random ones, overlaps beside what chance gives, and what the model could do."""
    made = []
    for name, beside in result.chance.items():
        made.append(
            f"{name}, on {beside.n_pairs} pairs: KL of its circuit {beside.kl:.3f} nats, of {beside.draws} "
            f"random ones {beside.random_kl:.3f}, p = {beside.p_holm:.2g}."
        )
    for pair in result.overlap:
        made.append(f"{' and '.join(pair.of)} share {pair.shared:,} edges. {overlap_sentence(pair)}")
    for name, found in (result.untuned_behaviour or {}).items():
        before, after = (Metric.of(one.accuracy) for one in (found, result.behaviour[name]))
        made.append(f"{name}: accuracy on validation pairs {before} untuned, {after} tuned.")
    return made


def write_prompts(result: PromptComparison, folder: Path) -> Path:
    """Write `prompts.html` into a folder: one file that needs nothing else."""
    words = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences(result))
    pairs = ", ".join(f"{count(number)} of {name}" for name, number in result.n_pairs.items())
    lead = (
        f"Circuits of {result.model}{', tuned for this' if result.tuned else ''}, {result.ablation} ablation, "
        f"on held-out pairs ({pairs}); 95 % intervals in brackets; {count(result.n_edges_total)} edges in all."
    )
    table = html_table(*cross_table(result, intervals=True))
    sections = [("Every circuit under every prompt", table), ("Overlap", words)]
    return write_simple_page(folder / "prompts.html", "One behaviour, several prompts", lead, sections)
