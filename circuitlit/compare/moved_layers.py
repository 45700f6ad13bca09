"""Which layers carry what tuning gained: their weights moved from the tuned model into the base."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor

from circuitlit.compare.effects import PairBed, gain_share, model_text_kl, plain_logits
from circuitlit.compare.layers import layer_nodes, top_layers
from circuitlit.compare.transplant import Transplant
from circuitlit.evaluate import Estimate
from circuitlit.evaluate.statistics import mean_estimate, mean_of
from circuitlit.evaluate.testing import rank_p, until_clear
from circuitlit.model import Subject
from circuitlit.tasks import Batch


@dataclass(frozen=True, kw_only=True)
class MovedLayers:
    """Weights of some layers moved from the tuned model into the base.

    What is not moved is as if it had been put back after tuning, so 1 minus the share is what freezing it afterwards
    costs.

    Attributes:
        ranking: that the layers lead; "all" for all layers together, "random" for those drawn.
        n_layers, layers: how many, and which.
        gain_share: of the metric's gain.
        accuracy: of the base with them.
        text_kl: KL(base || it) on other text, nats a token.
        random, random_text_kl: the same of as many random layers; None for all layers.
        rank_p, p_holm: rank of the share among theirs, and the same corrected for all claims.
        draws: random sets tried.
    """

    ranking: str
    n_layers: int
    layers: list[int]
    gain_share: Estimate
    accuracy: Estimate
    text_kl: float
    random: Estimate | None = None
    random_text_kl: Estimate | None = None
    rank_p: float | None = None
    p_holm: float | None = None
    draws: int | None = None


def move_layers(
    base: Subject,
    tuned: Subject,
    batches: Sequence[Batch],
    text: Int[Tensor, "passage pos"],
    rankings: Mapping[str, Float[Tensor, "layer"]],
    sizes: Sequence[int],
    draws: int,
    seed: int = 0,
) -> list[MovedLayers]:
    """Move all layers, and the leading ones of each ranking beside random ones.

    Args:
        base, tuned: two models of one graph.
        batches: pairs with a metric, other ones than those that the rankings are from.
        text: passages for the KL.
        rankings: of layers, by name; the largest lead.
        sizes: numbers of layers moved.
        draws: at most so many random sets of each size.
        seed: of these.

    Returns:
        All layers, then every ranking with each number of layers.
    """
    bed, move, total = PairBed(base, batches), Transplant(base, tuned), base.graph.n_layers
    goal = bed.measure(lambda batch: plain_logits(tuned, batch))

    def moved(ranking: str, layers: list[int]) -> MovedLayers:
        with move.weights(layer_nodes(base.graph, layers)) as copy:
            kl = model_text_kl(base, copy, text)
            outcome = bed.measure(lambda batch: plain_logits(copy, batch))
        return MovedLayers(
            ranking=ranking,
            n_layers=len(layers),
            layers=layers,
            gain_share=gain_share(bed.full, goal, outcome),
            accuracy=mean_estimate(outcome.accuracy, outcome.group),
            text_kl=float(kl.mean()),
        )

    rows = [moved("all", list(range(total)))]
    for size in sorted({min(number, total) for number in sizes}):
        own = [moved(name, top_layers(order, size)) for name, order in rankings.items()]
        rows += _beside_random(own, lambda layers: moved("random", layers), total, size, draws, seed)
    return rows


def _beside_random(
    own: list[MovedLayers], moved: Callable[[list[int]], MovedLayers], total: int, size: int, draws: int, seed: int
) -> list[MovedLayers]:
    """The same with random layers; of these as many as it takes to say that none of `own` is better, or all."""
    draw = random.Random(f"layers/{seed}/{size}")
    sets = (sorted(draw.sample(range(total), size)) for _ in range(draws))
    chance = until_clear(
        [row.gain_share.value for row in own], map(moved, sets), lambda one: [one.gain_share.value] * len(own)
    )
    shares = [row.gain_share.value for row in chance if row.gain_share.value is not None]
    mean, text = mean_of(shares) if shares else None, mean_of([row.text_kl for row in chance])
    found = []
    for row in own:
        share = row.gain_share.value
        p = None if share is None or not shares else rank_p(share, shares)
        found.append(replace(row, random=mean, random_text_kl=text, rank_p=p, draws=len(chance)))
    return found
