"""What a search for rivals found: circuits of the same size that share some edges, and what that says of the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from circuitlit.evaluate.statistics import Estimate
from circuitlit.result import Result

ACCEPTED, REJECTED, OPEN = "accepted", "rejected", "undecided"
UNIQUE, CORE, SEVERAL, UNDECIDED = "unique", "core with alternatives", "several", "undecided"
FEW, MOST = 0.25, 0.75  # shares of common edges up to which there are several circuits, and from which there is one
BACKUP = 0.1  # of the damage of removing both: what removing one may do where the other is a backup


@dataclass(frozen=True, kw_only=True)
class RivalCircuit:
    """A circuit of the same size that keeps some of the first one's edges.

    Attributes:
        share: of the first circuit's edges that it keeps.
        n_common: as many are these.
        start: what its masks started from, chosen on validation pairs.
        tried: KL on validation pairs by start, nats.
        kl: KL(model || it), nats.
        worse: its KL minus the first circuit's, the same pairs; nats.
        exact_match: share of pairs on which it says what the model says.
        lost: share of pairs by which it says so less often than the first circuit.
        state: "accepted", "rejected" or "undecided" (an interval straddles its bar).
        random_kl, ranked_kl: KL of random edges, and of the start's best ones, that share as much; None where there
            was no start.
        edges: numbers of its edges.
    """

    share: float
    n_common: int
    start: str
    tried: dict[str, float]
    kl: Estimate
    worse: Estimate
    exact_match: Estimate
    lost: Estimate
    state: str
    random_kl: Estimate | None = None
    ranked_kl: Estimate | None = None
    edges: list[int]


@dataclass(frozen=True, kw_only=True)
class Redundancy:
    """What removing circuits from the model does: KL(model || model without them), nats.

    Attributes:
        first, rival, both: without the first circuit, the rival, all edges of either.
        ratio: `both` over the sum of the other two: 1 is additive, above 1 each stands in for the other.
    """

    first: Estimate
    rival: Estimate
    both: Estimate
    ratio: Estimate

    @property
    def backs_up(self) -> bool:
        """True where removing either alone does little, and removing both a lot."""
        most = BACKUP * (self.both.value or 0.0)
        return (self.first.value or 0.0) <= most and (self.rival.value or 0.0) <= most


@dataclass(frozen=True, kw_only=True)
class PlantedSearch:
    """The same training, from equal masks, in a random model with a second copy planted: can it find one?

    Attributes:
        found: it did: the circuit without any edge of the first copy is accepted.
        edges_found: edges of the second copy that are in it.
        edges: edges of that copy.
        kl, corrupted_kl: its KL and that of no edges, nats.
        n_edges, n_edges_total: edges of the circuit and of the random model's graph.
    """

    found: bool
    edges_found: int
    edges: int
    kl: float
    corrupted_kl: float
    n_edges: int
    n_edges_total: int


@dataclass(frozen=True, kw_only=True, repr=False)
class Rivals(Result):
    """What `find_rivals` found.

    Attributes:
        task, model, method, ablation, n_edges, n_edges_total: the circuit.
        steps, starts: of each search.
        bar: a rival is accepted if its KL is at most so many nats above the circuit's.
        exact_bar: and its exact match at most so much below.
        kl, exact_match: the circuit's.
        corrupted_kl: of no edges.
        n_pairs, n_sentences: test pairs and their sentences.
        free: what the same search finds without a constraint on common edges.
        rivals: by share of common edges, the largest first.
        edges: numbers of the circuit's edges.
        hold: for each of them the least share at which the rival keeps it; near 0 it cannot be replaced.
        hardest: the edges that are held longest, by name.
        core: how many edges are in the circuit and all accepted rivals.
        redundancy: of the circuit and the accepted rival with fewest common edges; None where there is none.
        cross: KL of the circuit, that rival (or, if none was accepted, the one with fewest common edges), what they
            share, and both together, by task.
        control: the search's power; None where it was not needed or not asked for.
    """

    schema: ClassVar[str] = "rivals"
    file: ClassVar[str] = "rivals.json"
    indent: ClassVar[int | None] = None

    task: str
    model: str
    method: str
    ablation: str
    n_edges: int
    n_edges_total: int
    steps: int
    starts: list[str]
    bar: float
    exact_bar: float
    kl: Estimate
    exact_match: Estimate
    corrupted_kl: Estimate
    n_pairs: int
    n_sentences: int
    free: RivalCircuit
    rivals: list[RivalCircuit]
    edges: list[int]
    hold: list[float]
    hardest: dict[str, float]
    core: int
    redundancy: Redundancy | None
    cross: dict[str, dict[str, Estimate]]
    control: PlantedSearch | None

    @property
    def u(self) -> float:
        """Least share of common edges of an accepted rival: 0 all can be replaced, 1 none; chance is `u_chance`."""
        return least_accepted(self.tried)

    @property
    def u_low(self) -> float:
        """Where u may still be, the undecided rivals taken for accepted."""
        return least_not_rejected(self.tried)

    @property
    def u_chance(self) -> float:
        """Share of common edges of a random circuit."""
        return self.n_edges / self.n_edges_total

    @property
    def tried(self) -> list[RivalCircuit]:
        """All circuits that were searched, the free one among them."""
        return [*self.rivals, self.free]

    @property
    def verdict(self) -> str:
        """One of "unique", "core with alternatives", "several, redundant", "several, rewired", "undecided"."""
        return self._verdict[0]

    @property
    def why(self) -> str:
        """What the verdict stands on."""
        return self._verdict[1]

    @property
    def overturned_by(self) -> str:
        """What it would take to overturn the verdict."""
        least = "with an interval that stays"
        return {
            UNIQUE: f"one circuit of {self.n_edges:,} edges with fewer than {MOST:.0%} of these whose KL is at most "
            f"{self.bar:.3g} nats higher: search with more steps and other starts",
            CORE: f"an accepted rival with at most {FEW:.0%} of the edges, or accepted ones above {MOST:.0%} alone on "
            "other sentences",
            SEVERAL: f"test pairs on which the rival's KL is more than {self.bar:.3g} nats higher, {least} above that",
            UNDECIDED: "more test pairs, or a search with more steps",
        }[self.verdict.split(",")[0]]

    @property
    def _verdict(self) -> tuple[str, str]:
        u, low = self.u, self.u_low
        if u <= FEW:
            kind = "redundant" if self.redundancy is not None and self.redundancy.backs_up else "rewired"
            return f"{SEVERAL}, {kind}", f"a rival with {u:.0%} of the edges is accepted"
        if self.free.state == REJECTED:
            return UNDECIDED, "the search without a constraint does not find as good a circuit itself; raise its steps"
        if low >= MOST:
            return self._unique()
        if low > FEW and u < MOST:
            return CORE, f"accepted from {u:.0%} of the edges on"
        return UNDECIDED, f"u is between {low:.2f} and {u:.2f}: intervals of rivals straddle the bar"

    def _unique(self) -> tuple[str, str]:
        if self.control is None:
            return UNDECIDED, "no rival was found, and whether this search can find one was not tried (control)"
        if not self.control.found:
            return UNDECIDED, "no rival was found, nor was a planted second copy in a random model; raise the steps"
        return UNIQUE, f"no rival below {self.u_low:.0%} found in {len(self.starts)} starts, a planted second copy was"

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a circuit, the free one last."""
        for one in self.tried:
            parts = {
                name: getattr(one, name) for name in ("kl", "worse", "exact_match", "lost", "random_kl", "ranked_kl")
            }
            values = {name: part and part.value for name, part in parts.items()}
            kind = "free" if one is self.free else "held"
            yield {"search": kind, "share": one.share, "state": one.state, "start": one.start, **values}


def least_accepted(found: Sequence[RivalCircuit]) -> float:
    """Least share of an accepted rival; 1, the circuit itself, where there is none."""
    return min((one.share for one in found if one.state == ACCEPTED), default=1.0)


def least_not_rejected(found: Sequence[RivalCircuit]) -> float:
    """Least share of a rival that is not rejected."""
    return min((one.share for one in found if one.state != REJECTED), default=1.0)
