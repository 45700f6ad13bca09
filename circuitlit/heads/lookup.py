"""The nodes that carry what a prompt asks for, by what they read and write: chosen on some pairs, checked on others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import comb
from typing import Any

from circuitlit.evaluate.statistics import Estimate
from circuitlit.evaluate.testing import benjamini_hochberg, enough_draws, paired_p
from circuitlit.graph import Graph
from circuitlit.heads.causal import Behaviour, causal_check, metric_of_pairs
from circuitlit.heads.knowledge import BRIDGES, MLPS, blocking, carrying, role_effects, roles_of, writing
from circuitlit.heads.path_patching import PatchBed
from circuitlit.heads.roles import Head
from circuitlit.heads.tail import MLP
from circuitlit.tasks.splits import END, OTHER


@dataclass(frozen=True)
class LookupHead:
    """A head of a role: the metric lost without it, that as a share of the metric, its attention, q of all tried."""

    head: str
    drop: Estimate
    share: float
    attention: float | None
    q: float


@dataclass(frozen=True)
class LookupHeads:
    """The nodes of a role, how many were tried, and their check on test pairs beside random ones (None: no node)."""

    heads: list[LookupHead]
    tried: int
    check: dict[str, Any] | None


def lookup_heads(
    bed: PatchBed,
    test: PatchBed,
    role_names: Sequence[str],
    *,
    first_hops: PatchBed | None = None,
    candidates: int = 40,
    top: int = 5,
    least: float = 0.02,
    alpha: float = 0.05,
    draws: int | None = None,
) -> dict[str, LookupHeads]:
    """Nodes of each role, chosen on training pairs and checked on test pairs against random ones of their layers.

    They are chosen for what the metric loses without them; where it gains on the test pairs, the check fails. Where the
    metric does not clearly fall with corruption, there are none.

    With `first_hops`, the first steps of the training pairs, also those that carry what answers in two steps go over.
    """
    roles = roles_of(role_names, first_hops is not None)
    found, draws = {}, draws or enough_draws(len(roles))
    last = bed.graph.n_layers - 1
    silent = [(last, head) for head in (MLP, *range(bed.graph.n_heads))]  # at the subject no later token reads them
    for role in roles:
        if role in BRIDGES:
            assert first_hops is not None
            found_there = role_effects(first_hops, (OTHER, END), BRIDGES[role], candidates)
            tried = [one for one in found_there if one.head not in silent]
        else:
            tried = role_effects(bed, role_names, role, candidates)
        q = benjamini_hochberg([paired_p(entry.drop, entry.groups) for entry in tried])
        real = [
            (entry, value) for entry, value in zip(tried, q, strict=True) if value <= alpha and entry.share >= least
        ][:top]
        check = None
        if real:
            heads = [entry.head for entry, _ in real]
            behaviour, graph = _behaviour(test, role_names, role), test.graph
            spared = silent if role in BRIDGES else []
            sets = _other_mlps(graph, [*heads, *spared], len(heads), draws) if heads[0][1] == MLP else None
            made = causal_check(
                behaviour, graph, heads, draws, spared=spared, groups=test.groups, sets=sets, direction=-1
            )
            check = asdict(made)
            check["heads"] = [entry.name for entry, _ in real]
        listed = [LookupHead(e.name, e.estimate, e.share, e.attention, value) for e, value in real]
        found[role] = LookupHeads(listed, len(tried), check)
    return found


def _behaviour(bed: PatchBed, role_names: Sequence[str], role: str) -> Behaviour:
    if role in BRIDGES:
        return carrying(bed, role_names, "subject")
    read = roles_of(role_names)[role]
    if read is not None:
        return blocking(bed.heads, bed.batches, role_names, read)
    return writing(bed) if role == MLPS else metric_of_pairs(bed, "interchange")


def _other_mlps(graph: Graph, taken: Sequence[Head], count: int, draws: int) -> list[list[Head]]:
    """Random sets of other MLPs, as many if there are; all sets where there are fewer than `draws`."""
    free = [(layer, MLP) for layer in range(graph.n_layers) if (layer, MLP) not in taken]
    count = min(count, len(free))
    if comb(len(free), count) <= draws:
        return [list(one) for one in combinations(free, count)]
    rng = random.Random(0)
    return [rng.sample(free, count) for _ in range(draws)]
