"""What a run of the verb heads found, as tables in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from circuitlit.heads.roles import HeadScores, head_name, top_heads
from circuitlit.report.backup import backup_text
from circuitlit.report.grid import grid
from circuitlit.report.overlap import p_text
from circuitlit.report.table import Metric


def print_heads(scores: HeadScores, top: int, console: Console) -> None:
    """Print the top heads of each score, the IOI algorithm's parts and the causal checks, where there are any."""
    console.print(_score_table(scores, top))
    details: dict[str, Any] = scores.details
    algorithm = details.get("ioi_algorithm")
    if algorithm:
        console.print(_share_table(algorithm["shares"]))
        for role, heads in algorithm["roles"].items():
            console.print(f"  {role.replace('_', ' ')}: {' '.join(heads) or 'none'}", highlight=False)
    if details.get("backup"):
        console.print(f"  backup: {backup_text(details['backup'])}", highlight=False, soft_wrap=True)
    years = details.get("greater_than")
    if years is not None:
        console.print(f"  greater-than: {_years(years)}", highlight=False, soft_wrap=True)
    if details.get("causal"):
        console.print(_causal_table(details["causal"]))


def _years(found: dict[str, Any]) -> str:
    if found["status"] != "OK":
        return f"no check; {found['reason']}"
    looks, says, others, later = (str(Metric.of(found[k])) for k in ("looks", "says_year", "random_looks", "later"))
    return (
        f"{len(found['heads'])} heads feed {len(found['mlps'])} MLPs; at the end they look most at the year in {looks} "
        f"of cases (random heads {others}), say it or the next one in {says}; the MLPs raise later years by "
        f"{later} logits"
    )


def _score_table(scores: HeadScores, top: int) -> Table:
    """Effects are sorted by size, all other scores from the highest."""
    table = grid(f"Heads of {scores.details.get('model', 'the model')}", ("score", "top heads"))
    for name, of_heads in scores.scores.items():
        heads = top_heads(of_heads.abs() if "effect" in name else of_heads, top)
        shown = "  ".join(f"{head_name(head)} {float(of_heads[head]):.3f}" for head in heads)
        table.add_row(name.replace("_", " "), shown or "-")
    return table


def _share_table(shares: dict[str, Any]) -> Table:
    titles = {
        "B": "B: name movers and suppressors, on the logits",
        "C": "C: S-inhibition, on the name movers' queries",
        "D": "D: induction and duplicate tokens, on S-inhibition values",
    }
    table = grid("IOI algorithm", ("part", "heads", "share of all effects", "random heads"))
    for name, share in shares.items():
        found = (str(Metric.of(share[key])) for key in ("share", "random"))
        table.add_row(titles.get(name, name), str(share["heads"]), *found)
    return table


def _causal_table(checks: dict[str, Any]) -> Table:
    table = grid("Causal checks", ("role", "ablated", "whole model", "change", "random heads", "p"))
    for role, check in checks.items():
        found = (str(Metric.of(check[key])) for key in ("intact", "effect", "random"))
        p = p_text(check["p_holm"], check["rank_p"], check["draws"])
        table.add_row(role.replace("_", " "), " ".join(check["heads"]), *found, p)
    return table
