"""The leading nodes of a circuit in words, for the page and the terminal."""

from __future__ import annotations

from rich.console import Console

from circuitlit.heads.explain.explanation import LeadingNode, Nodes
from circuitlit.report.grid import grid
from circuitlit.report.table import Metric

NAMED = 3  # heads that the page names in sentences
FIRST = "first token"  # where heads rest that have nothing to do
LEAST = 0.1  # attention, or share of an effect, that is worth a word


def leading_sentences(nodes: Nodes) -> list[tuple[str, str]]:
    """The first heads, each by name and what is known of it."""
    heads = [node for node in nodes.leading if node.name[0] == "a"]
    return [(node.name, _sentence(node, nodes)) for node in heads[:NAMED]]


def known_nodes(nodes: Nodes) -> dict[str, dict[str, str]]:
    """By name the role, and in words what the graph says of a node."""
    return {node.name: {"role": _words(node), "text": _sentence(node, nodes)} for node in nodes.leading}


def role_words(node: LeadingNode) -> str:
    """Its roles, "-" without any."""
    return _words(node) or ("MLP" if node.name[0] == "m" else "-")


def _words(node: LeadingNode) -> str:
    return ", ".join("S-inhibition" if role == "s_inhibition" else role.replace("_", " ") for role in node.roles)


def shares_text(shares: dict[str, float], chance: dict[str, float] | None = None) -> list[str]:
    """The larger shares, with what attention that does not choose would have: "io .71 (.08)"."""
    worth = [(name, share) for name, share in shares.items() if share >= LEAST][:NAMED]
    return [f"{name} {share:.2f}" + (f" ({chance[name]:.2f})" if chance else "") for name, share in worth]


def random_note(nodes: Nodes) -> str:
    """What the random nodes are and do."""
    largest = max(nodes.random, key=lambda one: abs(one.in_circuit.value or 0.0), default=None)
    if largest is None:
        return "The circuit has no other nodes to compare with."
    size = Metric.of(nodes.random_in_circuit)
    return (
        f"{len(nodes.random)} other nodes of this circuit, drawn at random from the same layers or near them, have "
        f"effects of {size.text('.3f')} {size.interval('.3f')} in size; the largest, {largest.name}, has "
        f"{Metric.of(largest.in_circuit).text('.3f')}. In bold: beyond all random nodes of its kind."
    )


def print_leading(nodes: Nodes, console: Console) -> None:
    """Print a line a node."""
    numbers = (f"{nodes.metric}, circuit", "full model")
    table = grid("Leading nodes: what is lost without each", ("node", "role", "acts at", "attends to"), numbers)
    for node in nodes.leading:
        looks = ", ".join(shares_text(node.look.attends)) if node.look else ""
        at = ", ".join(shares_text(node.acts_at))
        lost = (_short(Metric.of(effect)) for effect in (node.in_circuit, node.in_model))
        table.add_row(node.name, role_words(node), at, looks or "-", *lost)
    console.print(table)
    console.print(random_note(nodes), highlight=False)


def _short(metric: Metric) -> str:
    low, high = metric.bounds or (None, None)
    return f"{metric.text()} [{low:.3f}, {high:.3f}]" if low is not None else metric.text()


def _sentence(node: LeadingNode, nodes: Nodes) -> str:
    role = f"{role_words(node)}: " if node.roles else ""
    at = next(iter(node.acts_at))
    said = f"{role}acts at {at}"
    looks = [one for one in node.look.attends.items() if one[0] != FIRST] if node.look else []
    if node.look and looks:
        key, share = looks[0]
        said += (
            f", from where it attends most to {key} ({share:.2f}; {node.look.uniform[key]:.2f} if it attended evenly)"
        )
        if node.look.attends.get(FIRST, 0.0) > share:
            said += f", the {FIRST} aside"
    effect = node.in_circuit.value or 0.0
    verb = "falls" if effect > 0 else "rises"
    beyond = "" if node.beyond else ", not beyond all random heads"
    return f"{said}. Without it the circuit's {nodes.metric} {verb} by {abs(effect):.2f}{beyond}."
