"""What circuits share, beside chance: rows of a table and sentences."""

from __future__ import annotations

from circuitlit.compare.turnover import GapTurnover
from circuitlit.evaluate.overlap_figures import OverlapFigures, SharedFigures
from circuitlit.evaluate.testing import LEVEL, above_all
from circuitlit.report.table import count

OVERLAP_HEADINGS = ("what", "sizes", "Jaccard", "by chance", "corrected", "p", "finding")
PARTS = {"nodes": "nodes", "edges": "edges", "gap": "nodes, given the shared edges"}
NOTHING = "nothing beyond chance"
FEW = "undecided: too few draws"


def p_text(p_holm: float | None, rank_p: float | None, draws: int | None) -> str:
    """A corrected p-value; where its draws are too few for what lies above all of them, that is said."""
    if p_holm is None:
        return "-"
    few = p_holm >= LEVEL and above_all(rank_p, draws)
    return f"{p_holm:.2g}" + (f", {draws} draws are too few" if few else "")


def beyond(part: OverlapFigures) -> bool:
    """Whether an overlap is beyond chance after correction for all claims of the result."""
    return part.p_holm is not None and part.p_holm < LEVEL


def finding(part: OverlapFigures) -> str:
    """The same in words; an overlap above all of its draws, however few they are, is not called chance."""
    if beyond(part):
        return "beyond chance"
    return FEW if above_all(part.rank_p, part.draws) else NOTHING


def overlap_rows(shared: SharedFigures) -> list[tuple[str, ...]]:
    """Nodes, edges, and nodes beside circuits that share as many edges."""
    return [(name, *overlap_cells(getattr(shared, key))) for key, name in PARTS.items()]


def overlap_cells(part: OverlapFigures) -> tuple[str, ...]:
    """Under all headings but the first."""
    sizes = " / ".join(count(round(size)) for size in part.sizes)
    numbers = (f"{number:.3f}" for number in (part.jaccard, part.expected, part.corrected))
    return (sizes, *numbers, f"{part.p_holm:.2g}", finding(part))


def overlap_sentence(shared: SharedFigures) -> str:
    """Nodes and edges, each beside chance, and whether nodes stay while edges change."""
    parts = [
        f"{name} {part.jaccard:.3f} (by chance {part.expected:.3f}, p = {part.p_holm:.2g}: {finding(part)})"
        for name, part in (("nodes", shared.nodes), ("edges", shared.edges))
    ]
    return f"Jaccard overlap of {', of '.join(parts)}. {gap_sentence(shared.gap)}"


def gap_sentence(gap: OverlapFigures) -> str:
    """The claim that nodes stay while edges change; said only where the test supports it and other pairs do less."""
    beside = (
        f"node overlap {gap.jaccard:.3f}, with as many edges exchanged at random {gap.expected:.3f}, "
        f"p = {gap.p_holm:.2g}"
    )
    noise = _noise(gap) if isinstance(gap, GapTurnover) else ""
    if beyond(gap):
        less = isinstance(gap, GapTurnover) and gap.within >= gap.between
        said = "The shared nodes are more than the shared edges imply" if less else "Nodes stay while edges change"
        return f"{said}: {beside}.{noise}"
    if finding(gap) == FEW:
        return f"Too few draws to tell whether nodes stay more than the shared edges imply: {beside}.{noise}"
    return f"That nodes stay more than the shared edges imply is not supported: {beside}.{noise}"


def _noise(gap: GapTurnover) -> str:
    """How many nodes other pairs keep, without any tuning."""
    text = f" As J*: {gap.between:.3f} between the models, {gap.within:.3f} between resamples of one model"
    if gap.within >= gap.between:
        return f"{text}; other pairs alone keep as many or more, so that nodes stay says nothing of tuning."
    return f"{text}."
