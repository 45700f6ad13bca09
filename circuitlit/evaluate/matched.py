"""Random sets of nodes to compare with: as many of each kind, from the same layers as far as there are others."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import TypeVar

from circuitlit.graph import Graph
from circuitlit.graph.nodes import place_of

NEAR = 4  # nearest nodes among which a draw is made
Member = TypeVar("Member")
TRIES = 3  # for each set, until others than those drawn are looked for further away


def matched_nodes(
    graph: Graph, nodes: Collection[str], draws: int, seed: int = 0, among: Collection[str] | None = None
) -> list[list[str]]:
    """Different random sets that match in size, kind (head or MLP) and, as far as possible, layers.

    A head is replaced by another head of its layer as long as there is one outside the set, else, like every MLP, by
    one of the nearest of its kind. Where that gives fewer than `draws` sets, nodes from further away are drawn, too,
    and a small model has fewer sets: the same one again would say nothing of chance. Where a kind has too few nodes
    outside the set, its nodes are drawn from all of that kind, so that the sets overlap: `mean_overlap` says how far.
    Nodes that are neither are left out.

    Args:
        graph: names the nodes.
        nodes: the set to match.
        draws: how many sets, if there are so many.
        seed: of the draws.
        among: nodes that are drawn, such as a circuit's; None draws any.
    """
    pool = [node for node in graph.nodes if among is None or node in among]
    by_kind = {kind: [n for n in pool if n[0] == kind] for kind in "am"}
    reaches = [NEAR]
    while reaches[-1] < len(pool):
        reaches.append(2 * reaches[-1])
    return different_sets(partial(_matched, set(nodes), by_kind.values()), draws, seed, reaches)


def different_sets(
    draw_one: Callable[[int, random.Random], Sequence[Member]], draws: int, seed: int, reaches: Iterable[int]
) -> list[list[Member]]:
    """Random sets of which none is there twice: from the first reach that gives as many, else those of the last.

    Args:
        draw_one: a set, from as far away as its first argument says.
        draws: how many sets.
        seed: of the draws; each reach begins with it anew.
        reaches: from near to far.
    """
    sets: dict[tuple[Member, ...], None] = {}
    for reach in reaches:
        draw, sets = random.Random(seed), {}
        for _ in range(TRIES * draws):
            sets[tuple(draw_one(reach, draw))] = None
            if len(sets) == draws:
                return [list(one) for one in sets]
    return [list(one) for one in sets]


def _matched(own: set[str], kinds: Iterable[list[str]], reach: int, draw: random.Random) -> list[str]:
    """One set."""
    drawn: list[str] = []
    for members in kinds:
        wanted = sorted(node for node in own if node in members)
        left = [node for node in members if node not in own]
        if len(left) < len(wanted):
            drawn += draw.sample(members, len(wanted))
            continue
        for node in draw.sample(wanted, len(wanted)):
            picked = _near(node, left, draw, reach)
            left.remove(picked)
            drawn.append(picked)
    return sorted(drawn)


def _near(node: str, left: list[str], draw: random.Random, reach: int = NEAR) -> str:
    """One of a node's layer, if there is any and none from further away is asked for; else one of the nearest."""
    layer = place_of(node)[0]
    same = [other for other in left if place_of(other)[0] == layer]
    if same and reach == NEAR:
        return draw.choice(same)
    return draw.choice(sorted(left, key=lambda other: abs(place_of(other)[0] - layer))[: max(reach, len(same))])


def mean_overlap(nodes: Collection[str], sets: Sequence[Collection[str]]) -> float:
    """Mean share of the nodes that a random set holds too; 0 is the control that one wants."""
    if not nodes or not sets:
        return 0.0
    return sum(len(set(nodes) & set(other)) for other in sets) / (len(nodes) * len(sets))


def matched_edges(graph: Graph, edges: Sequence[int], draws: int, seed: int = 0) -> list[list[int]]:
    """Random sets of edges into the same readers, from other writers of the same kind and near their layers.

    An edge whose reader sees no other writer of that kind outside the set is replaced by any other edge.
    """
    draw, own = random.Random(seed), set(edges)
    offsets, visible, writers = graph.offsets.tolist(), graph.visible.tolist(), graph.writers
    sets = []
    for _ in range(draws):
        drawn: set[int] = set()
        for edge in edges:
            reader, writer = int(graph.reader_of[edge]), writers[int(graph.writer_of[edge])]
            places = {writers[i]: offsets[reader] + i for i in range(graph.inputs, visible[reader])}
            left = [n for n, place in places.items() if n[0] == writer[0] and place not in own | drawn]
            if left:
                drawn.add(places[_near(writer, left, draw)])
            else:
                drawn.add(draw.choice([e for e in range(graph.n_edges) if e not in own | drawn] or list(own)))
        sets.append(sorted(drawn))
    return sets
