"""A circuit in a notebook: its top edges between labelled nodes, to be looked at with the mouse."""

from __future__ import annotations

import plotly.graph_objects as go

from circuitlit.arguments import checks_arguments
from circuitlit.graph import Circuit
from circuitlit.report.circuit_figure import colours_of, edge_traces, node_trace
from circuitlit.report.drawing import DRAWN
from circuitlit.report.edges import ranked_edges, ranking_note
from circuitlit.report.figures import GREY, finish
from circuitlit.report.paper_circuit import linked_nodes, ordered_places
from circuitlit.report.table import count


@checks_arguments
def plot_circuit(circuit: Circuit, drawn: int = DRAWN) -> go.Figure:
    """Draw the top edges of a circuit, layers upwards; a node's text names its strongest edges.

    Args:
        circuit: of a result (`result.live.circuit`) or a file (`Circuit.load`).
        drawn: most edges that become lines; only their nodes are drawn.
    """
    graph, edges = circuit.graph, ranked_edges(circuit)
    shown = edges[:drawn]
    places = ordered_places(graph, shown)
    figure = go.Figure(edge_traces(shown, places))
    for source, target in linked_nodes(graph, places):
        ends = zip(places[source], places[target], strict=True)
        x, y = (list(pair) for pair in ends)
        look = {"color": GREY, "width": 1, "dash": "dot"}
        figure.add_trace(go.Scatter(x=x, y=y, mode="lines", line=look, hoverinfo="skip", showlegend=False))
    nodes = node_trace(edges, places)
    nodes.update(mode="markers+text", textposition="middle right", showlegend=False)
    nodes.update(customdata=nodes.text, hovertemplate="%{customdata}<extra></extra>", text=list(places))
    figure.add_trace(nodes)
    for kind, colour in colours_of(graph).items():
        key = {"mode": "lines", "line": {"color": colour, "width": 2}, "name": f"into {kind}"}
        figure.add_trace(go.Scatter(x=[None], y=[None], **key))
    which = f"the top {drawn} of {count(len(edges))}" if len(edges) > drawn else f"all {count(len(edges))}"
    figure.update_layout(title={"text": f"{which} edges", "subtitle": {"text": ranking_note(circuit.scores)}})
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    rows = len({y for _, y in places.values()})
    return finish(figure, max(420, 26 * rows + 120)).update_layout(margin={"t": 70}, dragmode="pan")
