"""`prompts.json` as a table and as one page: circuits down, prompts across."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from rich.console import Console
from rich.text import Text

from circuitlit.report.grid import grid
from circuitlit.report.overlap import overlap_sentence
from circuitlit.report.simple_page import write_simple_page
from circuitlit.report.table import Metric, count

FIGURES = (("accuracy", "accuracy"), ("exact_match", "exact match"), ("kl", "KL (nats)"))


def print_prompts(result: dict, console: Console) -> None:
    """Print the table and the overlaps, or why there are none."""
    if result["reason"]:
        console.print(Text(f"FAILED: {result['reason']}", "bold red"), soft_wrap=True)
    if "rows" not in result:
        return
    title = f"{result['model']}{', tuned' if result['tuned'] else ''}: every circuit under every prompt, held-out pairs"
    headings, rows = cross_table(result, intervals=False)
    table = grid(title, headings[:1], headings[1:])
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for sentence in sentences(result):
        console.print(sentence, highlight=False)


def cross_table(result: dict, intervals: bool) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; a prompt's figures stand side by side."""
    tasks = result["tasks"]
    headings = ["circuit", "edges", *(f"{words}, {task}" for _, words in FIGURES for task in tasks)]
    rows = []
    for row in result["rows"]:
        metrics = [Metric.of(row["on"][task][key]) for key, _ in FIGURES for task in tasks]
        rows.append([row["circuit"], count(row["n_edges"]), *(str(m) if intervals else m.text() for m in metrics)])
    return headings, rows


def sentences(result: dict) -> list[str]:
    """Circuits beside random ones, overlaps beside what chance gives, and what the model could do."""
    made = []
    for name, beside in result["chance"].items():
        made.append(
            f"{name}, on {beside['n_pairs']} pairs: KL of its circuit {beside['kl']:.3f} nats, of {beside['draws']} "
            f"random ones {beside['random_kl']:.3f}, p = {beside['p_holm']:.2g}."
        )
    for entry in result["overlap"]:
        one, two = entry["of"]
        made.append(f"{one} and {two} share {entry['shared']:,} edges. {overlap_sentence(entry)}")
    for name, found in (result["untuned_behaviour"] or {}).items():
        after = Metric.of(result["behaviour"][name]["accuracy"])
        made.append(f"{name}: accuracy on validation pairs {Metric.of(found['accuracy'])} untuned, {after} tuned.")
    return made


def write_prompts(folder: Path) -> Path:
    """Write `prompts.html` from `prompts.json`: one file that needs nothing else."""
    result = json.loads((folder / "prompts.json").read_text())
    headings, rows = cross_table(result, intervals=True)
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    words = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences(result))
    pairs = ", ".join(f"{count(number)} of {name}" for name, number in result["n_pairs"].items())
    lead = (
        f"Circuits of {result['model']}{', tuned for this' if result['tuned'] else ''}, {result['ablation']} ablation, "
        f"on held-out pairs ({pairs}); 95 % intervals in brackets; {count(result['n_edges_total'])} edges in all."
    )
    sections = [("Every circuit under every prompt", f"<table><tr>{head}</tr>{body}</table>"), ("Overlap", words)]
    return write_simple_page(folder / "prompts.html", "One behaviour, several prompts", lead, sections)
