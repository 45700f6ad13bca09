"""The circuit drawn as a graph: layers upwards, heads and MLP in columns, a colour for what an edge feeds."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable

import plotly.graph_objects as go

from circuitlit.graph import INPUTS, Graph
from circuitlit.report.edges import KINDS, RankedEdge
from circuitlit.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, finish, labelled_layers

DRAWN = 400
COLOURS: dict[str, str] = dict(zip(KINDS, (BLUE, ORANGE, GREEN, PINK, RED, SKY), strict=True))
# Share of the drawn edges at which a bin of strength ends, its opacity and its line width; weakest last.
_BINS = ((0.1, 0.95, 2.0), (0.4, 0.55, 1.2), (1.0, 0.28, 0.9))
_CURVE = tuple(step / 12 for step in range(13))
_SYMBOLS = {"head": "circle", "kv": "triangle-up", "mlp": "square", "end": "diamond"}
_LISTED = 3

Place = tuple[float, float]


def colours_of(graph: Graph) -> dict[str, str]:
    """Colours of the kinds of edges that a graph has."""
    return {kind: colour for kind, colour in COLOURS.items() if kind != "router" or graph.routers}


def circuit_figure(graph: Graph, edges: list[RankedEdge], drawn: int = DRAWN) -> go.Figure:
    """Draw the top edges; nodes are sized by the number of all their edges, drawn or not.

    Args:
        graph: shape of the model.
        edges: all reachable edges, top first.
        drawn: how many of them become lines.
    """
    places = node_places(graph)
    figure = go.Figure()
    shown = edges[:drawn]
    figure.add_traces(edge_traces(shown, places))
    if graph.n_kv_heads < graph.n_heads:
        figure.add_trace(_group_trace(graph, {edge.target for edge in edges}))
    figure.add_trace(node_trace(edges, places))
    layers = labelled_layers(graph)
    heads = list(range(0, graph.n_heads, max(1, graph.n_heads // 12)))
    figure.update_yaxes(
        tickvals=[-1.4, *layers, graph.n_layers + 0.4],
        ticktext=["input", *(str(layer) for layer in layers), "logits"],
        range=[-2.2, graph.n_layers + 1.2],
        title_text="layer",
    )
    figure.update_xaxes(
        tickvals=[*heads, _mlp_column(graph)], ticktext=[*(f"h{head}" for head in heads), "MLP"], showgrid=False
    )
    figure.update_layout(showlegend=False)
    return finish(figure, min(1100, max(440, 26 * graph.n_layers + 120)))


def node_places(graph: Graph) -> dict[str, Place]:
    """Where every node stands: x counts heads, y layers; an MLP stands above the heads whose output it reads."""
    middle = graph.n_heads / 2
    inputs = graph.writers[: graph.inputs]
    places: dict[str, Place] = {name: (middle + place, -1.4) for place, name in enumerate(inputs)}
    places["logits"] = (middle, graph.n_layers + 0.4)
    group = graph.n_heads // graph.n_kv_heads
    for layer in range(graph.n_layers):
        for head in range(graph.n_heads):
            places[f"a{layer}.h{head}"] = (float(head), float(layer))
        for head in range(graph.n_kv_heads if group > 1 else 0):
            places[f"a{layer}.kv{head}"] = (head * group + (group - 1) / 2, layer - 0.34)
        places[f"m{layer}"] = (_mlp_column(graph), layer + 0.33)
    return places


def _mlp_column(graph: Graph) -> float:
    return graph.n_heads - 1 + max(1.5, 0.12 * graph.n_heads)


def edge_traces(edges: list[RankedEdge], places: dict[str, Place]) -> list[go.Scatter]:
    """Lines of the edges, top first; the weakest are drawn first and faintest."""
    traces = []
    for opacity, width, part in reversed(list(_strength_bins(edges))):
        for kind in KINDS:
            lines = [edge for edge in part if edge.kind == kind]
            if lines:
                traces.append(_edge_trace(lines, places, opacity, width))
    return traces


def _strength_bins(edges: list[RankedEdge]) -> Iterable[tuple[float, float, list[RankedEdge]]]:
    start = 0
    for end, opacity, width in _BINS:
        stop = math.ceil(end * len(edges))
        yield opacity, width, edges[start:stop]
        start = stop


def _edge_trace(edges: list[RankedEdge], places: dict[str, Place], opacity: float, width: float) -> go.Scatter:
    """Lines of one kind and strength in one trace, parted by None."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for edge in edges:
        (x0, y0), (x1, y1) = places[edge.source], places[edge.target]
        # A bow keeps edges that share a column apart; the MLP column has free space on its right.
        bow = (0.09 if edge.source[0] == edge.target[0] == "m" else 0.025) * (y1 - y0)
        bow = bow if x1 >= x0 else -bow
        xs += [round(x0 + t * (x1 - x0) + 4 * bow * t * (1 - t), 3) for t in _CURVE]
        ys += [round(y0 + t * (y1 - y0), 3) for t in _CURVE]
        xs.append(None)
        ys.append(None)
    kind = edges[0].kind
    line = {"color": COLOURS[kind], "width": width}
    return go.Scatter(
        x=xs, y=ys, mode="lines", line=line, opacity=opacity, hoverinfo="skip", meta=kind, name=kind, showlegend=False
    )


def _group_trace(graph: Graph, targets: set[str]) -> go.Scatter:
    """A short bar under the heads that share a key/value head, where one is read."""
    group = graph.n_heads // graph.n_kv_heads
    xs: list[float | None] = []
    ys: list[float | None] = []
    for layer in range(graph.n_layers):
        for head in range(graph.n_kv_heads):
            if f"a{layer}.kv{head}" in targets:
                xs += [head * group - 0.15, (head + 1) * group - 0.85, None]
                ys += [layer - 0.26, layer - 0.26, None]
    return go.Scatter(x=xs, y=ys, mode="lines", line={"color": GREY, "width": 1}, opacity=0.45, hoverinfo="skip")


def node_trace(edges: list[RankedEdge], places: dict[str, Place]) -> go.Scatter:
    """Nodes, sized by the number of all their edges; their text names the strongest ones."""
    incoming, outgoing = Counter(edge.target for edge in edges), Counter(edge.source for edge in edges)
    kinds = Counter((edge.target, edge.kind) for edge in edges)
    strongest: dict[tuple[str, str], list[RankedEdge]] = defaultdict(list)
    for edge in edges:
        for way, node in (("in", edge.target), ("out", edge.source)):
            if len(strongest[way, node]) < _LISTED:
                strongest[way, node].append(edge)
    degree = {node: incoming[node] + outgoing[node] for node in places}
    largest = max(1, max(degree.values(), default=1))
    notes = []
    for node in places:
        parts = ", ".join(f"{kind} {kinds[node, kind]}" for kind in "qkv" if kinds[node, kind])
        lines = [f"<b>{node}</b>", f"in {incoming[node]}{f' ({parts})' if parts else ''}, out {outgoing[node]}"]
        if ".kv" in node:
            lines[1] = f"key/value head, {lines[1].removesuffix(', out 0')}"
        for way in ("in", "out"):
            lines += [f"{edge.name}: {edge.score:.3g}" for edge in strongest[way, node]]
        # Plotly reads markup in hover texts: the reader `<q>` has to arrive as text.
        notes.append("<br>".join([lines[0], *(line.replace("<", "&lt;").replace(">", "&gt;") for line in lines[1:])]))
    return go.Scatter(
        x=[x for x, _ in places.values()],
        y=[y for _, y in places.values()],
        mode="markers",
        marker={
            "size": [4 + 12 * math.sqrt(degree[node] / largest) if degree[node] else 3 for node in places],
            "symbol": [_SYMBOLS[_sort(node)] for node in places],
            "opacity": [0.95 if degree[node] else 0.35 for node in places],
            "color": GREY,
            "line": {"width": 0},
        },
        text=notes,
        hovertemplate="%{text}<extra></extra>",
        name="nodes",
    )


def _sort(node: str) -> str:
    if node in (*INPUTS, "logits"):
        return "end"
    if node[0] == "m":
        return "mlp"
    return "kv" if ".kv" in node else "head"
