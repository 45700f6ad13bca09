"""Whether a tuned model still uses a node as the base does: what it writes, and whether the two can be swapped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

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
    """

    forward: Estimate
    backward: Estimate
    control: Estimate
    margin: float

    @property
    def replaces(self) -> bool | None:
        """Whether the base's node does in the tuned model, with 95 % confidence; None where the pairs do not decide."""
        return self._enough(self.forward)

    @property
    def fits_back(self) -> bool | None:
        """Whether the tuned node does in the base model, with 95 % confidence; None where the pairs do not decide."""
        return self._enough(self.backward)

    @property
    def fits(self) -> bool | None:
        """Both ways; one failure is enough for False."""
        ways = (self.replaces, self.fits_back)
        return False if False in ways else None if None in ways else True

    @property
    def telling(self) -> bool:
        """The node matters: its corrupted write costs more than the margin, with 95 % confidence."""
        return self._enough(self.control) is False

    def _enough(self, left: Estimate) -> bool | None:
        if left.bounds is None:
            return None
        low, high = left.bounds
        return True if low >= 1 - self.margin else False if high < 1 - self.margin else None


@dataclass(frozen=True)
class NodeReuse:
    """Likeness and swap of one node.

    Attributes:
        likeness: what it writes, and where it attends.
        swap: decides; None where the node was not swapped.
    """

    likeness: Likeness
    swap: Swap | None

    @property
    def verdict(self) -> str | None:
        """The quadrant of causal swap (both ways) and likeness, in `VERDICTS`; None without a swap.

        "same": can be swapped and writes alike; "unlike but fits": can be swapped, writes otherwise; "like another":
        writes alike, yet cannot be swapped; "changed": neither; "uncertain": too few pairs to say of the swap.
        """
        if self.swap is None:
            return None
        fits, alike = self.swap.fits, bool(self.likeness.alike)
        if fits is None:
            return "uncertain"
        return VERDICTS[0 if fits and alike else 2 if fits else 1 if alike else 3]

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        swap = self.swap
        found = {**asdict(self.likeness), "alike": self.likeness.alike, "swap": None, "verdict": self.verdict}
        if swap is not None:
            found["swap"] = asdict(swap) | {
                "replaces": swap.replaces,
                "fits_back": swap.fits_back,
                "telling": swap.telling,
            }
        return found


@dataclass(frozen=True)
class Reuse:
    """Likeness of all nodes of two models, and swaps of some.

    Attributes:
        nodes: by name.
        able: "base" or "tuned", the model with the larger effect.
        effect: its metric on clean less corrupted prompts, which all shares are of.
    """

    nodes: dict[str, NodeReuse]
    able: str
    effect: Estimate

    @property
    def swaps(self) -> dict[str, Swap]:
        """Those that were made, by node."""
        return {name: node.swap for name, node in self.nodes.items() if node.swap is not None}

    def summary(self) -> dict[str, Any]:
        """Counts of verdicts, among all swapped nodes and among those where a swap can tell."""
        swapped = [node for node in self.nodes.values() if node.swap is not None]
        telling = [node for node in swapped if node.swap is not None and node.swap.telling]
        compared = [node for node in self.nodes.values() if node.likeness.alike is not None]
        return {
            "swapped": len(swapped),
            "telling": len(telling),
            "verdicts": dict(Counter(node.verdict for node in swapped)),
            "telling_verdicts": dict(Counter(node.verdict for node in telling)),
            "compared": len(compared),
            "alike": sum(bool(node.likeness.alike) for node in compared),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "able": self.able,
            "effect": self.effect.to_dict(),
            "summary": self.summary(),
            "nodes": [node.to_dict() for node in self.nodes.values()],
        }


def reuse(base: Subject, tuned: Subject, batches: Sequence[Batch], nodes: Sequence[str], margin: float = 0.05) -> Reuse:
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
        node: Swap(left("tuned", "clean", node), left("base", "tuned", node), left("tuned", "corrupted", node), margin)
        for node in nodes
    }
    found = {node: NodeReuse(like, swaps.get(node)) for node, like in likenesses(base, tuned, batches).items()}
    return Reuse(found, able, mean_estimate(effect, group))


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
