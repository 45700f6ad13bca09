"""What a pruned model lost, in three lines."""

from __future__ import annotations

from rich.console import Console

from circuitlit.compare.pruned_model import PrunedModel
from circuitlit.report.table import Metric


def print_pruned(result: PrunedModel, console: Console) -> None:
    """Print sizes, answers before and after, and the distance on other text."""
    held, sizes = result.held_out, result.parameters
    lines = [
        f"{len(result.cut)} of {result.n_nodes} heads and MLPs cut: {sizes['pruned']:,} of {sizes['whole']:,} "
        f"parameters, {result.bytes / 2**20:.0f} MiB",
        f"accuracy {Metric.of(held.accuracy_base)} -> {Metric.of(held.accuracy_tuned)}, metric "
        f"{Metric.of(held.metric_base)} -> {Metric.of(held.metric_tuned)} on {held.n_pairs} held-out pairs",
        f"KL on other text {Metric.of(result.text_kl)} nats a token; logits within "
        f"{result.beside_ablated.max_logit_difference:.1e} of the node-ablated model's",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
