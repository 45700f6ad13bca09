"""Export of a circuit as a smaller model: nodes that no kept edge leaves are cut out of the weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from circuitlit.cli.build import encoded, provenance
from circuitlit.cli.checks import run_dir
from circuitlit.cli.sides import load_side, passages
from circuitlit.compare.effects import PairBed, plain_logits, text_kl, without_nodes
from circuitlit.errors import UserError
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.files import write_json
from circuitlit.finetune import behaviour_change
from circuitlit.graph import Circuit, MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject
from circuitlit.model.logits import logits_at
from circuitlit.model.prune import cut_nodes, load_pruned, pruned, save_pruned
from circuitlit.model.slices import plain_copy
from circuitlit.progress import CONSOLE
from circuitlit.report.table import Metric
from circuitlit.tasks.pair import Batch


def run(cfg: DictConfig, circuit: Circuit) -> dict[str, Any]:
    """Cut, save, reload, and measure what was lost on the circuit's task and on other text.

    Raises:
        UserError: a model that cannot be cut or loaded.
    """
    whole = load_side(cfg, cfg.circuit, cfg.model.name)
    if whole.graph != circuit.graph:
        raise UserError(f"{cfg.circuit} is of another graph than its model; name a run's folder")
    whole = plain_copy(whole)
    cut = cut_nodes(circuit.graph, circuit.reachable)
    folder = run_dir() / "pruned"
    assert whole.tokenizer is not None
    nbytes = save_pruned(whole.model, pruned(whole.model, cut), cut, whole.tokenizer, folder)
    small = load_pruned(folder).to(whole.device)  # pyright: ignore[reportArgumentType]
    figures = _measured(cfg, whole, small, cut)
    result = {
        "circuit": str(cfg.circuit),
        "task": cfg.task.name,
        "n_nodes": len(circuit.graph.nodes),
        "cut": cut,
        "parameters": {"whole": _count(whole.model), "pruned": _count(small)},
        "bytes": nbytes,
        **figures,
        "provenance": provenance(cfg, whole),
    }
    write_json(run_dir() / "pruned.json", result)
    _say(result)
    CONSOLE.print(f"{folder}", highlight=False, soft_wrap=True)
    return result


def _measured(cfg: DictConfig, whole: Subject, small: Any, cut: list[str]) -> dict[str, Any]:
    """Answers on test pairs, KL on other text, and the greatest logit difference to the node-ablated model."""
    test = encoded(cfg, instantiate(cfg.task.build)(tokenizer=whole.tokenizer), whole).test
    bed = PairBed(whole, test.batches(cfg.data.eval_batch_size))

    def logits(batch: Batch) -> torch.Tensor:
        return logits_at(small, batch.clean, batch.positions)

    outcome = bed.measure(logits)
    ids = passages(cfg, whole, cfg.passages.count, cfg.passages.length)
    with torch.no_grad():
        moved = text_kl(whole, ids, lambda: small(ids).logits)
        first = bed.batches[0]
        masks = MaskLayout(whole.graph).dense(without_nodes(whole.graph, cut)[0].to(whole.device, torch.float32))
        ablated = References(whole, "zero").compute(first).ablated
        beside = MaskedModel(whole)(masks, first.clean, ablated, first.positions)
        off = float((beside - logits(first)).abs().max())
        size = float(plain_logits(whole, first).abs().max())
    change = asdict(behaviour_change(bed.full, outcome))
    return {
        "held_out": change,
        "text_kl": mean_estimate(moved, None).to_dict(),
        "beside_ablated": {"max_logit_difference": off, "max_logit": size},
    }


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _say(result: dict[str, Any]) -> None:
    held, sizes = result["held_out"], result["parameters"]
    lines = [
        f"{len(result['cut'])} of {result['n_nodes']} heads and MLPs cut: {sizes['pruned']:,} of {sizes['whole']:,} "
        f"parameters, {result['bytes'] / 2**20:.0f} MiB",
        f"accuracy {Metric.of(held['accuracy_base'])} -> {Metric.of(held['accuracy_tuned'])}, metric "
        f"{Metric.of(held['metric_base'])} -> {Metric.of(held['metric_tuned'])} on {held['n_pairs']} held-out pairs",
        f"KL on other text {Metric.of(result['text_kl'])} nats a token; logits within "
        f"{result['beside_ablated']['max_logit_difference']:.1e} of the node-ablated model's",
    ]
    for line in lines:
        CONSOLE.print(line, highlight=False, soft_wrap=True)
