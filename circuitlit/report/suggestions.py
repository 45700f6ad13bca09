"""What a tuning story suggests, sentence by sentence, each with its interval, and what it does not show."""

from __future__ import annotations

from circuitlit.compare.intervention_figures import SetAblation, Transferred
from circuitlit.compare.moved_layers import MovedLayers
from circuitlit.evaluate.testing import LEVEL, above_all
from circuitlit.report.table import Metric
from circuitlit.timeline.story import ShortInterventions, TuningStory

ENOUGH = 0.8  # least share of the gain, at the lower end of its interval, for freezing the rest


def suggestions(story: TuningStory) -> list[tuple[str, str]]:
    """Headings and sentences: which method, which layers, what to freeze, which nodes, how sure."""
    way, method = _method(story)
    return [
        ("Which method", method),
        *[(f"Which layers ({name})", _layers(told.layers)) for name, told in story.ways.items()],
        *[(f"What to freeze ({name})", _freeze(told.layers)) for name, told in story.ways.items()],
        *[(f"Which nodes ({name})", _nodes(told.nodes)) for name, told in story.ways.items()],
        ("How sure", _how_sure(story, way)),
    ]


def _method(story: TuningStory) -> tuple[str | None, str]:
    """The way that is to be preferred, None where none is."""
    between = story.between
    one, other = between.ways
    score, cost = Metric.of(getattr(between, story.score)), Metric.of(between.text_kl)
    name = story.score
    better, cheaper = _sign(score), _sign(cost)
    text = f"{name} of {one} minus {other}: {score}; KL to the base model on other text: {_three(cost)} nats a token. "
    if better:
        best = one if better > 0 else other
        text += f"{best} scores higher on held-out pairs"
        dearer = cheaper != 0 and (one if cheaper > 0 else other) == best
        text += ", but moves other text more." if dearer else "." if not cheaper else ", and moves other text less."
        return best, text + ("" if dearer else f" Take {best}.")
    if cheaper:
        best = other if cheaper > 0 else one
        return best, text + f"No difference in the score is shown; {best} moves other text less. Take {best}."
    return None, text + "No difference is shown: this run gives no reason to prefer either."


def _layers(rows: list[MovedLayers]) -> str:
    """Rankings whose layers carry more of the gain than random ones, and those that do not."""
    better, untold, others = [], [], []
    for row in rows[1:]:
        what = f"{row.n_layers} by {row.ranking}"
        if _beats(row):
            share, random = Metric.of(row.gain_share), Metric.of(row.random)
            better.append(f"{what} ({_list(row.layers)}) {share}, random {random}, p = {_p(row.p_holm)}")
        else:
            (untold if above_all(row.rank_p, row.draws) else others).append(f"{what} (p = {_p(row.p_holm)})")
    text = "Weights moved from the tuned model into the base, share of the gain. "
    text += f"More than random layers: {'; '.join(better) or 'none'}. "
    text += f"Too few random sets to tell: {', '.join(untold)}. " if untold else ""
    return text + f"No better than random: {', '.join(others) or 'none'}."


def _freeze(rows: list[MovedLayers]) -> str:
    """The fewest layers that keep most of the gain and beat random ones."""
    whole = Metric.of(rows[0].gain_share)
    good = [row for row in rows[1:] if _beats(row) and (Metric.of(row.gain_share).bounds or (0.0, 0.0))[0] >= ENOUGH]
    if not good:
        return (
            f"No set of layers that was tried keeps {ENOUGH:.0%} of the gain for sure and beats random sets of as "
            f"many, so nothing can be frozen on this evidence (all layers together keep {whole})."
        )
    best = min(good, key=lambda row: row.n_layers)
    return (
        f"All but layers {_list(best.layers)} (chosen by {best.ranking}): put back to the base after tuning, "
        f"{Metric.of(best.gain_share)} of the gain stays, and KL on other text is {best.text_kl:.4f} nats "
        f"instead of {rows[0].text_kl:.4f}. Putting back afterwards is not freezing before; try it."
    )


def _nodes(nodes: ShortInterventions) -> str:
    own, moved = nodes.ablation.set, nodes.transfer.weights
    text = (
        f"{' '.join(nodes.chosen)}: ablated in the tuned model they cost {Metric.of(own.drop)} of a metric of "
        f"{Metric.of(nodes.full_metric)}, random nodes {Metric.of(own.random)}, p = {_p(own.p_holm)}: "
        f"{_than_random(own)}. "
    )
    if moved.p_holm is None:
        return text + "What putting their weights back takes is not defined."
    return text + (
        f"Their weights put back to the base's take {Metric.of(moved.gain_share)} of the gain, random nodes "
        f"{Metric.of(moved.random_gain_share)}, p = {_p(moved.p_holm)}: {_than_random(moved)}."
    )


def _than_random(claim: SetAblation | Transferred) -> str:
    if _beats(claim):
        return "more than random nodes"
    return "too few random sets to tell" if above_all(claim.rank_p, claim.draws) else "no better than random"


def _how_sure(story: TuningStory, way: str | None) -> str:
    pairs = next(iter(story.ways.values())).held_out.n_pairs
    text = (
        f"Intervals are 95 % over {pairs} held-out pairs (fewer where nodes and layers are moved); p is the rank among "
        "random sets, corrected (Holm) for all comparisons with random sets on this page. One model, one task, "
        f"seed {story.seed} alone: another seed may say otherwise. Learning rates were given, not searched for, so "
        "a difference between methods is one between these settings."
    )
    if story.status != "OK":
        text += f" The story FAILED: {story.reason}; what is said of the circuits then explains no gain."
    return text


def _beats(claim: MovedLayers | SetAblation | Transferred) -> bool:
    return claim.p_holm is not None and claim.p_holm < LEVEL


def _sign(metric: Metric) -> int:
    """+1 or -1 where the interval, for new sentences if there are several, leaves out 0."""
    if metric.bounds is None:
        return 0
    return (metric.bounds[0] > 0) - (metric.bounds[1] < 0)


def _three(metric: Metric) -> str:
    return f"{metric.text('z.4f')} {metric.interval('z.4f')}"


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _list(layers: list[int]) -> str:
    return ", ".join(map(str, layers))
