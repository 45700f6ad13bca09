"""Export of a circuit as a smaller model: nodes that no kept edge leaves are cut out of the weights."""

from __future__ import annotations

from omegaconf import DictConfig

from circuitlit.cli.build import build_pairs, provenance
from circuitlit.cli.checks import run_dir
from circuitlit.cli.sides import load_side, passages
from circuitlit.compare.pruned_model import PrunedModel, prune_model
from circuitlit.graph import Circuit
from circuitlit.progress import CONSOLE
from circuitlit.report.pruned import print_pruned


def run(cfg: DictConfig, circuit: Circuit) -> PrunedModel:
    """Cut, save, reload, and measure what was lost on the circuit's task and on other text."""
    whole = load_side(cfg, cfg.circuit, "circuit")
    text = passages(cfg, whole, cfg.passages.count, cfg.passages.length)
    folder = run_dir() / "pruned"
    result = prune_model(whole, circuit, build_pairs(cfg, whole), folder, text, str(cfg.circuit))
    result = result.replaced(provenance=provenance(cfg, whole))
    result.save(run_dir())
    print_pruned(result, CONSOLE)
    CONSOLE.print(f"{folder}", highlight=False, soft_wrap=True)
    return result
