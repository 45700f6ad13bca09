"""One search for a rival: masks from several starts, the best on validation pairs, measured on test pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlit.discover.fit import fit
from circuitlit.discover.gates import Gates
from circuitlit.discover.method import Method
from circuitlit.discover.methods.mask_gradients import mask_gradients
from circuitlit.discover.overlap import OverlapLearner, confident_apart
from circuitlit.discover.schedule import Schedule
from circuitlit.discover.workbench import Workbench
from circuitlit.evaluate.find import SCALE, fitted_masks
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.statistics import Estimate, mean_estimate, mean_of, paired_difference
from circuitlit.evaluate.trust.identity import identity, identity_of_search
from circuitlit.evaluate.trust.rivals import ACCEPTED, OPEN, REJECTED, RivalCircuit
from circuitlit.graph import Circuit, EdgeScores
from circuitlit.objective import Outcome, kl_divergence

STARTS = ("removed", "whole", "equal")
Kept = Bool[Tensor, "edge"]


@dataclass(frozen=True)
class RivalSearch:
    """All that searches for rivals of one circuit share.

    Attributes:
        bench: of the circuit's size, masks on edges.
        first: the circuit.
        schedule, gates: of the masks' training.
        starts: what masks start from.
        within, exact: what a rival may be worse by: a share of KL(model || no edges), and of pairs.
        draws: random circuits to compare with.
        seed: of everything random.
        choosing, testing: validation and test pairs.
        measured: the first circuit on the test pairs.
        identity: what a stored rival depends on.
    """

    bench: Workbench
    first: Circuit
    schedule: Schedule
    gates: Gates
    starts: Sequence[str]
    within: float
    exact: float
    draws: int
    seed: int
    choosing: TestBed
    testing: TestBed
    measured: Outcome
    identity: dict[str, Any]

    @classmethod
    def of(
        cls, bench: Workbench, first: Circuit, *, probe_pairs: int, pairs: int = 200, **settings: Any
    ) -> RivalSearch:
        """Run model and circuit on the pairs; settings are the attributes of their names."""
        validation, test = bench.data.to_choose_on, bench.data.test
        testing = TestBed.of(bench, test, test.spread(pairs))
        known = {
            "probe_pairs": probe_pairs,
            "test_pairs": pairs,
            **{name: str(value) for name, value in settings.items()},
        }
        return cls(
            bench,
            first,
            choosing=TestBed.of(bench, validation, validation.spread(probe_pairs)),
            testing=testing,
            measured=testing.run(first.kept),
            identity=identity(bench, first) | identity_of_search(bench) | known,
            **settings,
        )

    @property
    def bar(self) -> float:
        """Nats by which a rival's KL may be higher."""
        return self.within * float(self.testing.corrupted.kl.mean())

    @property
    def inside(self) -> Kept:
        """The first circuit's edges."""
        return self.first.kept[0]

    def free(self) -> RivalCircuit:
        """The best circuit of this size that the search finds without a constraint on common edges."""
        bench, made = self.bench, {}
        for start in dict.fromkeys("whole" if start == "removed" else start for start in self.starts):
            scores = None if start == "equal" else self._gradients(None)
            learner, _ = fitted_masks(bench, scores, schedule=self.schedule, gates=self.gates, seed=self.seed)
            made[start] = bench.cut(learner.scores()).kept[0]
        return self._best(made)

    def rival(self, common: int) -> RivalCircuit:
        """The best circuit of this size with `common` of the first one's edges.

        All of them make the first circuit itself, which needs no search.
        """
        size = self.bench.count
        if common == size:
            return self._best({"the circuit itself": self.inside})
        counts, made, best = (common, size - common), {}, {}
        for start in self.starts:
            order = self._order(start)
            initial = torch.full((len(self.inside),), SCALE)
            if order is not None:
                initial = confident_apart(order, self.parts, counts, SCALE)
                best[start] = initial > 0
            own = (initial, self.inside, counts, self._schedule(start), self.gates, self.seed)
            with self.bench.training():
                learner = OverlapLearner(self.bench.loss(kl_divergence), self.bench.references, *own)
                fit(learner.to(self.bench.subject.device), self.bench.data, steps=self.schedule.steps)
            made[start] = learner.kept()
        return self._best(made, self._random(counts), best)

    @property
    def parts(self) -> list[Int[Tensor, "_"]]:
        """Numbers of the edges inside and outside of the first circuit."""
        return [part.nonzero()[:, 0] for part in (self.inside, ~self.inside)]

    def _schedule(self, start: str) -> Schedule:
        """Masks that begin equal begin open: with few gates open at random no path would be."""
        return replace(self.schedule, start_sparsity=0.0) if start == "equal" else self.schedule

    def _gradients(self, absent: Kept | None) -> EdgeScores:
        where = None if absent is None else absent.to(self.bench.subject.device)
        return self.bench.score(Method.of(mask_gradients, steps=5, draws=1, absent=where))

    def _order(self, start: str) -> Float[Tensor, "edge"] | None:
        """What edges are ranked by at the start; None where all begin equal.

        In the whole model, what only stands in for the circuit may have no gradient. In the model without the circuit
        it has, but then what needs some of the circuit's edges has none.
        """
        if start == "equal":
            return None
        if start == "whole":
            return self._gradients(None).order[0]
        return torch.where(self.inside, self.first.scores.order[0], self._gradients(self.inside).order[0])

    def _random(self, counts: Sequence[int]) -> list[Kept]:
        draw, made = torch.Generator().manual_seed(self.seed), []
        for _ in range(self.draws):
            kept = torch.zeros_like(self.inside)
            for part, count in zip(self.parts, counts, strict=True):
                kept[part[torch.randperm(len(part), generator=draw)[:count]]] = True
            made.append(kept)
        return made

    def _best(
        self, made: dict[str, Kept], random: Sequence[Kept] = (), ranked: Mapping[str, Kept] | None = None
    ) -> RivalCircuit:
        """The circuit of the start that is best on validation pairs, on the test pairs, beside what needs no search."""
        tried = {start: float(self.choosing.run(kept[None]).kl.mean()) for start, kept in made.items()}
        start = min(tried, key=tried.__getitem__)
        kept, run = made[start], lambda edges: self.testing.run(edges[None])
        found, common = run(kept), int((kept & self.inside).sum())
        worse = paired_difference(found.kl, self.measured.kl, found.group)
        lost = paired_difference(self.measured.exact_match, found.exact_match, found.group)
        return RivalCircuit(
            share=common / self.bench.count,
            n_common=common,
            start=start,
            tried=tried,
            kl=mean_estimate(found.kl, found.group),
            worse=worse,
            exact_match=mean_estimate(found.exact_match, found.group),
            lost=lost,
            state=accepted(worse, self.bar, lost, self.exact),
            random_kl=mean_of([float(run(one).kl.mean()) for one in random]) if random else None,
            ranked_kl=self._least(ranked or {}),
            edges=kept.nonzero()[:, 0].tolist(),
        )

    def _least(self, ranked: Mapping[str, Kept]) -> Estimate | None:
        """KL on the test pairs of the ranking that is best on validation pairs."""
        if not ranked:
            return None
        best = min(ranked.values(), key=lambda kept: float(self.choosing.run(kept[None]).kl.mean()))
        return mean_estimate(self.testing.run(best[None]).kl, self.testing.full.group)


def accepted(worse: Estimate, bar: float, lost: Estimate, exact: float) -> str:
    """The state of a rival. Intervals are those of these sentences: with those few that tasks hold out, none for new
    sentences could decide.

    Args:
        worse: its KL minus the circuit's; accepted, and rejected, by its interval.
        bar: nats that it may be worse by.
        lost: share of pairs by which it says less often what the model says; accepted by the share itself, rejected
            by its interval.
        exact: what that may be; a rival that loses exactly this is accepted, however the shares are rounded.
    """
    assert worse.low is not None and worse.high is not None and lost.value is not None and lost.low is not None
    most = exact + 1e-9
    if worse.low > bar or lost.low > most:
        return REJECTED
    return ACCEPTED if worse.high <= bar and lost.value <= most else OPEN
