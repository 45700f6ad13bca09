"""Whether a tuned model still uses a node as the base does: what it writes, and whether the two can be swapped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.compare.effects import PairBed, plain_logits
from circuitlit.compare.likeness import Likeness, likenesses
from circuitlit.compare.writes import Write, Writers
from circuitlit.evaluate import Estimate
from circuitlit.evaluate.statistics import mean_estimate, statistic
from circuitlit.model import Subject
from circuitlit.objective import Outcome
from circuitlit.tasks import Batch

VERDICTS = ("same", "like another", "unlike but fits", "changed", "uncertain")


@dataclass(frozen=True)
class Swap:
    """One node exchanged between two models on the same prompts.

    Each figure is the share of the task's effect that is left, see `effect_left`: 1 lost nothing, 0 as much as the
    corruption takes from the model that can do the task; above 1 the metric grew.

    Attributes:
        forward: the base's write put into the tuned model.
        backward: the tuned model's write put into the base.
        control: the base's write on the corrupted prompt put into the tuned model; where that leaves everything, too,
            the node does not matter and a swap cannot tell.
        margin: share that may be lost.
        replaces: whether the base's node does in the tuned model, with 95 % confidence; None where the pairs do not
            decide.
        fits_back: whether the tuned node does in the base model, likewise.
        telling: the node matters: its corrupted write costs more than the margin, with 95 % confidence.
    """

    forward: Estimate
    backward: Estimate
    control: Estimate
    margin: float
    replaces: bool | None
    fits_back: bool | None
    telling: bool

    @classmethod
    def of(cls, forward: Estimate, backward: Estimate, control: Estimate, margin: float) -> Swap:
        """Judge what is left."""

        def enough(left: Estimate) -> bool | None:
            low, high = left.bounds or (-math.inf, math.inf)
            return True if low >= 1 - margin else False if high < 1 - margin else None

        return cls(forward, backward, control, margin, enough(forward), enough(backward), enough(control) is False)

    @property
    def fits(self) -> bool | None:
        """Both ways; one failure is enough for False."""
        ways = (self.replaces, self.fits_back)
        return False if False in ways else None if None in ways else True


@dataclass(frozen=True, kw_only=True)
class NodeReuse(Likeness):
    """Likeness and swap of one node.

    Attributes:
        swap: decides; None where the node was not swapped.
        verdict: the quadrant of causal swap (both ways) and likeness, in `VERDICTS`; None without a swap. "same": can
            be swapped and writes alike; "unlike but fits": can be swapped, writes otherwise; "like another": writes
            alike, yet cannot be swapped; "changed": neither; "uncertain": too few pairs to say of the swap.
    """

    swap: Swap | None
    verdict: str | None

    @classmethod
    def of(cls, likeness: Likeness, swap: Swap | None) -> NodeReuse:
        """Judge a node."""
        if swap is None:
            verdict = None
        elif swap.fits is None:
            verdict = "uncertain"
        else:
            verdict = VERDICTS[0 if swap.fits and likeness.alike else 2 if swap.fits else 1 if likeness.alike else 3]
        return cls(**vars(likeness), swap=swap, verdict=verdict)


@dataclass(frozen=True, kw_only=True)
class ReuseSummary:
    """Counts over all nodes.

    Attributes:
        swapped: nodes.
        telling: those of them where a swap can tell.
        verdicts, telling_verdicts: nodes of each, among all that were swapped and among the telling ones.
        compared: nodes whose likeness exists.
        alike: those of them that are.
    """

    swapped: int
    telling: int
    verdicts: dict[str, int]
    telling_verdicts: dict[str, int]
    compared: int
    alike: int

    @classmethod
    def of(cls, nodes: Sequence[NodeReuse]) -> ReuseSummary:
        """Count."""
        swapped = [node for node in nodes if node.swap is not None]
        telling = [node for node in swapped if node.swap is not None and node.swap.telling]
        compared = [node for node in nodes if node.alike is not None]
        return cls(
            swapped=len(swapped),
            telling=len(telling),
            verdicts=dict(Counter(str(node.verdict) for node in swapped)),
            telling_verdicts=dict(Counter(str(node.verdict) for node in telling)),
            compared=len(compared),
            alike=sum(bool(node.alike) for node in compared),
        )


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """Likeness of all nodes of two models, and swaps of some.

    Attributes:
        able: "base" or "tuned", the model with the larger effect.
        effect: its metric on clean less corrupted prompts, which all shares are of.
        summary: counts.
        nodes: all of them, in the graph's order.
    """

    able: str
    effect: Estimate
    summary: ReuseSummary
    nodes: list[NodeReuse]

    @property
    def swaps(self) -> dict[str, Swap]:
        """Those that were made, by node."""
        return {node.node: node.swap for node in self.nodes if node.swap is not None}


@dataclass(frozen=True)
class Swaps:
    """Which nodes are compared and swapped, and on what.

    Attributes:
        pairs: test pairs; 0 leaves all of it out.
        nodes: heads and MLPs that are swapped, those that carry most of either circuit.
        margin: share of the task's effect that a swap may cost.
    """

    pairs: int = 16
    nodes: int = 24
    margin: float = 0.05


def swap_nodes(
    base: Subject, tuned: Subject, batches: Sequence[Batch], nodes: Sequence[str], margin: float = 0.05
) -> Reuse:
    """Likeness of all nodes; some are swapped, each by itself, both ways, and for the base's write when corrupted.

    Args:
        base, tuned: two models of one graph.
        batches: pairs with a metric.
        nodes: to swap.
        margin: share of the task's effect that a swap may cost.
    """
    models = {"base": Writers(base), "tuned": Writers(tuned)}
    beds = {name: PairBed(writers.subject, batches) for name, writers in models.items()}
    written = {
        "clean": {id(batch): models["base"].record(batch.clean) for batch in beds["tuned"].batches},
        "corrupted": {id(batch): models["base"].record(batch.corrupted) for batch in beds["tuned"].batches},
        "tuned": {id(batch): models["tuned"].record(batch.clean) for batch in beds["base"].batches},
    }
    effects = {name: _effect(bed) for name, bed in beds.items()}
    able = max(effects, key=lambda name: float(effects[name].mean()))
    effect, group = effects[able], beds[able].full.group

    def left(host: str, source: str, node: str) -> Estimate:
        bed, records = beds[host], written[source]
        return effect_left(bed.full, bed.measure(_replaced(models[host], records, node)), effect)

    swaps = {
        node: Swap.of(
            left("tuned", "clean", node), left("base", "tuned", node), left("tuned", "corrupted", node), margin
        )
        for node in nodes
    }
    found = [NodeReuse.of(like, swaps.get(node)) for node, like in likenesses(base, tuned, batches).items()]
    return Reuse(able=able, effect=mean_estimate(effect, group), summary=ReuseSummary.of(found), nodes=found)


def _effect(bed: PairBed) -> Float[Tensor, "pair"]:
    """A model's metric on the clean less that on the corrupted prompts."""
    corrupted = bed.measure(lambda batch: bed.subject.logits(batch.corrupted, batch.positions))
    return (bed.full.metric - corrupted.metric).double()


def _replaced(writers: Writers, records: dict[int, Callable[[str], Write]], node: str) -> Callable[[Batch], Tensor]:
    def logits_of(batch: Batch) -> Tensor:
        write = records[id(batch)]
        with writers.changed([node], lambda name, _own: write(name)):
            return plain_logits(writers.subject, batch)

    return logits_of


def effect_left(full: Outcome, changed: Outcome, effect: Float[Tensor, "pair"]) -> Estimate:
    """Share of the task's effect that a change leaves, 1 - mean(m(full) - m(changed)) / mean(effect).

    The metric of the changed model itself would be no measure: where that model cannot do the task it is near 0. The
    share does not exist for a single pair, nor where the effect is not clearly above 0.
    """
    lost = full.metric.double() - changed.metric.double()
    clear = mean_estimate(effect, full.group).bounds
    if len(lost) < 2 or clear is None or not clear[0] > 0:
        return Estimate()
    return statistic(lambda means: 1 - means[0] / means[1], torch.stack([lost, effect]), full.group).estimate()
