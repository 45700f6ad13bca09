"""The circuit itself for papers: its top edges between labelled nodes, as a figure or in Graphviz's language DOT."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from circuitlit.graph import Graph
from circuitlit.report.circuit_figure import COLOURS, colours_of
from circuitlit.report.drawing import DRAWN, followers, level_of
from circuitlit.report.edges import RankedEdge
from circuitlit.report.figures import GREY

SWEEPS = 8
_SHAPES = {"a": "ellipse", "m": "box"}
_MARKERS = {"a": "o", "m": "s"}


def circuit(graph: Graph, edges: Sequence[RankedEdge], drawn: int = DRAWN) -> Figure:
    """The top edges, layers upwards; the wider a line, the larger its score, dashed where that is negative."""
    shown = edges[:drawn]
    places = ordered_places(graph, shown)
    rows = len({y for _, y in places.values()})
    wide = max(x for x, _ in places.values()) - min(x for x, _ in places.values()) + 2
    figure = Figure(figsize=(max(5.5, 0.62 * wide), max(3.0, 0.3 * rows)), layout="constrained")
    axis = figure.subplots()
    axis.set_axis_off()
    largest = max((abs(edge.score) for edge in shown), default=1.0) or 1.0
    for edge in reversed(shown):
        (x0, y0), (x1, y1) = places[edge.source], places[edge.target]
        size, style = abs(edge.score) / largest, "--" if edge.score < 0 else "-"
        line = {"lw": 0.4 + 2.6 * size**0.5, "alpha": 0.3 + 0.6 * size**0.5, "ls": style}
        axis.plot([x0, x1], [y0, y1], color=COLOURS[edge.kind], solid_capstyle="round", **line)
    for source, target in linked_nodes(graph, places):
        (x0, y0), (x1, y1) = places[source], places[target]
        axis.plot([x0, x1], [y0, y1], color=GREY, lw=0.6, ls=":")
    for name, (x, y) in places.items():
        axis.plot(x, y, _MARKERS.get(name[0], "D") if ".kv" not in name else "^", color=GREY, ms=4)
        axis.annotate(name, (x, y), (3, 0), textcoords="offset points", va="center", fontsize=6)
    for kind, colour in colours_of(graph).items():
        axis.plot([], [], color=colour, label=kind)
    axis.legend(title="into", ncols=len(colours_of(graph)), loc="upper center", bbox_to_anchor=(0.5, -0.01))
    return figure


def dot(
    graph: Graph, edges: Sequence[RankedEdge], groups: Mapping[str, Sequence[str]] | None = None, drawn: int = DRAWN
) -> str:
    """The top edges in DOT: `dot -Tpdf circuit.dot`. Nodes of a layer share a rank, those of a group a box."""
    shown, grouped = edges[:drawn], groups or {}
    names = _names(shown)
    taken = {node for nodes in grouped.values() for node in nodes}
    largest = max((abs(edge.score) for edge in shown), default=1.0) or 1.0
    lines = ["digraph circuit {", "  rankdir=BT;", "  node [fontname=Helvetica, fontsize=10, height=0.25];"]
    for name in names:
        shape = "triangle" if ".kv" in name else _SHAPES.get(name[0], "diamond")
        lines.append(f"  {json.dumps(name)} [shape={shape}];")
    for number, (title, nodes) in enumerate(grouped.items()):
        inside = " ".join(f"{json.dumps(node)};" for node in nodes if node in names)
        lines.append(f"  subgraph cluster_{number} {{ label={json.dumps(title)}; {inside} }}")
    for row in _rows(graph, [name for name in names if name not in taken]).values():
        lines.append("  { rank=same; " + " ".join(f"{json.dumps(name)};" for name in row) + " }")
    for source, target in linked_nodes(graph, names):
        lines.append(f'  {json.dumps(source)} -> {json.dumps(target)} [style=dotted, arrowhead=none, color="{GREY}"];')
    for edge in shown:
        width, style = 0.4 + 3.6 * (abs(edge.score) / largest) ** 0.5, "dashed" if edge.score < 0 else "solid"
        look = f'color="{COLOURS[edge.kind]}", penwidth={width:.2f}, style={style}, tooltip="{edge.score:.4g}"'
        lines.append(f"  {json.dumps(edge.source)} -> {json.dumps(edge.target)} [{look}];")
    return "\n".join([*lines, "}", ""])


def _names(edges: Sequence[RankedEdge]) -> list[str]:
    return list(dict.fromkeys(name for edge in edges for name in (edge.source, edge.target)))


def linked_nodes(graph: Graph, there: Mapping[str, object] | Sequence[str]) -> list[tuple[str, str]]:
    """Key/value heads and the heads that share them, where both are drawn."""
    return [
        (name, head)
        for name, heads in followers(graph, list(there))
        for head in heads
        if head in there and head != name and not graph.coupled
    ]


def _rows(graph: Graph, names: Sequence[str]) -> dict[int, list[str]]:
    rows: dict[int, list[str]] = defaultdict(list)
    for name in names:
        rows[level_of(graph, name)].append(name)
    return dict(sorted(rows.items()))


def ordered_places(graph: Graph, edges: Sequence[RankedEdge]) -> dict[str, tuple[float, float]]:
    """Layers upwards; within a layer, nodes stand in the order of the means of those that they are joined with.

    Source: Sugiyama, Tagawa and Toda, IEEE Transactions on Systems, Man and Cybernetics 11 (1981), barycentres.
    """
    names = _names(edges)
    near: dict[str, list[str]] = {name: [] for name in names}
    for source, target in [*((e.source, e.target) for e in edges), *linked_nodes(graph, names)]:
        near[source].append(target)
        near[target].append(source)
    rows = list(_rows(graph, names).values())
    x = {name: place - (len(row) - 1) / 2 for row in rows for place, name in enumerate(row)}
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            wanted = {name: sum(x[other] for other in near[name]) / max(1, len(near[name])) for name in row}
            row.sort(key=wanted.__getitem__)
            middle = sum(wanted.values()) / len(row)
            x |= {name: middle + place - (len(row) - 1) / 2 for place, name in enumerate(row)}
    shift = {True: 0.28, False: 0.0}
    return {
        name: (x[name], number + shift[name[0] == "m"] - shift[".kv" in name])
        for number, row in enumerate(rows)
        for name in row
    }
