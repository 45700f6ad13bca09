"""Whether a tuned model still uses a node as the base does: what it writes, and whether the two can be swapped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from circuitlit.compare.effects import PairBed, plain_logits
from circuitlit.compare.likeness import Likeness, likenesses
from circuitlit.compare.writes import Write, Writers
from circuitlit.evaluate import Estimate
from circuitlit.evaluate.statistics import statistic
from circuitlit.model import Subject
from circuitlit.objective import Outcome
from circuitlit.tasks import Batch

VERDICTS = ("same", "like another", "unlike but fits", "changed")


@dataclass(frozen=True)
class Swap:
    """One node exchanged between two models on the same prompts.

    Each figure is the share of the host's metric that is left, 1 - (m(host) - m(swapped)) / |m(host)|.

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
    def replaces(self) -> bool:
        """The base's node does in the tuned model, with 95 % confidence."""
        return self.forward.low is not None and self.forward.low >= 1 - self.margin

    @property
    def fits_back(self) -> bool:
        """The tuned node does in the base model, with 95 % confidence."""
        return self.backward.low is not None and self.backward.low >= 1 - self.margin

    @property
    def telling(self) -> bool:
        """The node matters: its corrupted write costs more than the margin, with 95 % confidence."""
        return self.control.high is not None and self.control.high < 1 - self.margin


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
        writes alike, yet cannot be swapped; "changed": neither.
        """
        if self.swap is None:
            return None
        fits, alike = self.swap.replaces and self.swap.fits_back, bool(self.likeness.alike)
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


def reuse(
    base: Subject, tuned: Subject, batches: Sequence[Batch], nodes: Sequence[str], margin: float = 0.05
) -> dict[str, NodeReuse]:
    """Likeness of all nodes, and a swap of some.

    Args:
        base, tuned: two models of one graph.
        batches: pairs with a metric.
        nodes: to swap.
        margin: share of the metric that a swap may cost.
    """
    alike, swapped = likenesses(base, tuned, batches), swaps(base, tuned, batches, nodes, margin)
    return {node: NodeReuse(found, swapped.get(node)) for node, found in alike.items()}


def swaps(
    base: Subject, tuned: Subject, batches: Sequence[Batch], nodes: Sequence[str], margin: float
) -> dict[str, Swap]:
    """Swap each node by itself, both ways, and by the base's write on the corrupted prompts."""
    models = {"base": Writers(base), "tuned": Writers(tuned)}
    beds = {name: PairBed(writers.subject, batches) for name, writers in models.items()}
    written = {
        "clean": {id(batch): models["base"].record(batch.clean) for batch in beds["tuned"].batches},
        "corrupted": {id(batch): models["base"].record(batch.corrupted) for batch in beds["tuned"].batches},
        "tuned": {id(batch): models["tuned"].record(batch.clean) for batch in beds["base"].batches},
    }

    def share(host: str, source: str, node: str) -> Estimate:
        bed, records = beds[host], written[source]
        return kept_share(bed.full, bed.measure(_replaced(models[host], records, node)))

    return {
        node: Swap(
            share("tuned", "clean", node), share("base", "tuned", node), share("tuned", "corrupted", node), margin
        )
        for node in nodes
    }


def _replaced(writers: Writers, records: dict[int, Callable[[str], Write]], node: str) -> Callable[[Batch], Tensor]:
    def logits_of(batch: Batch) -> Tensor:
        write = records[id(batch)]
        with writers.changed([node], lambda name, _own: write(name)):
            return plain_logits(writers.subject, batch)

    return logits_of


def kept_share(full: Outcome, changed: Outcome) -> Estimate:
    """Share of a metric that is left: 1 - (m(full) - m(changed)) / |m(full)|; above 1 where it grew."""
    whole, own = full.metric.double(), changed.metric.double()
    columns = torch.stack([whole - own, whole])
    return statistic(lambda means: 1 - means[0] / means[1].abs(), columns, full.group).estimate()


def summary(found: dict[str, NodeReuse]) -> dict[str, Any]:
    """Counts of verdicts, among all swapped nodes and among those where a swap can tell."""
    swapped = [node for node in found.values() if node.swap is not None]
    telling = [node for node in swapped if node.swap is not None and node.swap.telling]
    compared = [node for node in found.values() if node.likeness.alike is not None]
    return {
        "swapped": len(swapped),
        "telling": len(telling),
        "verdicts": dict(Counter(node.verdict for node in swapped)),
        "telling_verdicts": dict(Counter(node.verdict for node in telling)),
        "compared": len(compared),
        "alike": sum(bool(node.likeness.alike) for node in compared),
    }
