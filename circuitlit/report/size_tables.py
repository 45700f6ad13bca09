"""Tables over all series of an evolution: when things emerge by size, circuit sizes, and heads that lost a role."""

from __future__ import annotations

from collections.abc import Iterator

from circuitlit.report.table import count
from circuitlit.timeline.account import handover_rows
from circuitlit.timeline.emergence import Joined, SeedRange, Trend
from circuitlit.timeline.evolution import Evolution

Table = tuple[str, list[str], list[list[str]]]  # title, headings, rows
MOST = 40  # rows of the table of losses


def size_tables(result: Evolution) -> Iterator[Table]:
    """Emergence of tasks and of heads, circuit size and stability by model size, trends, and losses of roles."""
    tasks, sizes = result.tasks, result.sizes
    if sizes:
        roles = list(sizes[0].heads)
        yield (
            f"{_axis(result)} from which on half of the gain in accuracy is kept [surely not before, surely]",
            ["parameters", *tasks],
            [[count(row.n_parameters), *(when_text(row.emerged[task]) for task in tasks)] for row in sizes],
        )
        yield (
            f"the same of the best head score of each role ({_axis(result)})",
            ["parameters", *(role.replace("_", " ") for role in roles)],
            [[count(row.n_parameters), *(when_text(row.heads.get(role)) for role in roles)] for row in sizes],
        )
        for name, title in (
            ("nodes", "nodes of the smallest faithful circuit, mean from emergence on [least, most of any seed]"),
            ("edges", "its edges"),
            ("stability", "J* of nodes with the checkpoint before (0 as by chance), mean from emergence on"),
        ):
            cells = [[_spread(getattr(row, name)[task], name) for task in tasks] for row in sizes]
            named = [[count(row.n_parameters), *own] for row, own in zip(sizes, cells, strict=True)]
            yield title, ["parameters", *tasks], named
    if len(sizes) > 1:
        names = {"emergence": f"{_axis(result)} to emergence", **{n: n for n in ("nodes", "edges", "stability")}}
        rows = [[text, *(_r(result.trends[task][name]) for task in tasks)] for name, text in names.items()]
        yield (
            "correlation with model size (logarithms; a size's models count once), p of sizes permuted",
            ["", *tasks],
            rows,
        )
    lost = list(handover_rows(result.series, tasks))
    if lost:
        headings = ["series", "task", "role", "head", "best at step", "lost at step", "got it meanwhile"]
        rows = [
            [series, task, role, row.head, str(row.peak), str(row.lost), _heads(row.taken_over_by)]
            for series, task, role, row in lost[:MOST]
        ]
        more = f" (the first {MOST} of {len(lost)})" if len(lost) > MOST else ""
        yield f"heads of a circuit that lost a role{more}", headings, rows


def _heads(names: list[str]) -> str:
    return " ".join(names[:4]) + (" ..." if len(names) > 4 else "") or "nobody"


def _axis(result: Evolution) -> str:
    found = [entry.emerged for one in result.series for entry in one.tasks.values() if entry.emerged]
    return "steps" if any(one.axis == "step" for one in found) else "tokens"


def when_text(found: Joined | None) -> str:
    """`1.2M [0.9M, 1.4M]`, `1 of 2 seeds [0.9M, -]`, `not by 20M`; "-" where nothing was measured."""
    if found is None:
        return "-"
    if not found.n:
        return f"not by {tokens_text(found.low)}" if found.low else "not seen"
    high = "-" if found.high is None else tokens_text(found.high)
    at = f"{found.n} of {found.seeds} seeds" if found.value is None else tokens_text(found.value)
    return f"{at} [{tokens_text(found.low)}, {high}]"


def _spread(found: SeedRange | None, name: str) -> str:
    if found is None:
        return "-"
    form = (lambda value: f"{value:.2f}") if name == "stability" else (lambda value: f"{value:.0f}")
    return f"{form(found.value)} [{form(found.low)}, {form(found.high)}]"


def _r(found: Trend) -> str:
    if found.r is None:
        return "-"
    p = f"p {found.p:.3f}" if found.p is not None else f"p not measurable, {found.sizes} sizes"
    return f"{found.r:.2f}, {p}"


def tokens_text(tokens: float | None) -> str:
    """`2.1M`, "-" where unknown."""
    if tokens is None:
        return "-"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if tokens >= size:
            return f"{tokens / size:.3g}{unit}"
    return f"{tokens:.0f}"
