"""Does it help to freeze the nodes that the conflict index names, before tuning? Against equally many random nodes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from jaxtyping import Float, Int
from lightning import Trainer
from omegaconf import DictConfig
from torch import Tensor

from circuitlit.cli.callbacks import FiniteLoss
from circuitlit.compare.effects import node_weights
from circuitlit.compare.generality import conflict_index, conflicting
from circuitlit.compare.injection import expected_changes
from circuitlit.compare.matched import matched_nodes, mean_overlap
from circuitlit.errors import UserError
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.finetune import Examples, Optimisation, SupervisedTuner, TuningData, answer_log_probs, examples_of_task
from circuitlit.finetune.freeze import Frozen
from circuitlit.graph import Circuit
from circuitlit.model import Subject
from circuitlit.model.slices import withheld

ARMS = ("nothing", "conflict", "random")


def prevention(
    cfg: DictConfig, tasks: dict[str, DictConfig], circuits: dict[str, Circuit], base: Subject
) -> dict[str, Any]:
    """Tune on one task with nothing, the conflicting nodes, or random ones frozen, and test on all tasks.

    The nodes are named before any tuning: the importance of a node for the other tasks, and the gradient of the tuning
    loss, each as shares, the smaller of the two.

    Args:
        cfg: the verb's configuration; `generality.prevent` and `tune`.
        tasks: configuration of every task.
        circuits: each task's, on the base model.
        base: the model before tuning.

    Raises:
        UserError: an unknown task to tune on, or adapters.
    """
    settings = cfg.generality.prevent
    if settings.tune_on not in tasks:
        raise UserError(
            f"generality.prevent.tune_on={settings.tune_on} is not among generality.tasks; name one of them"
        )
    assert base.tokenizer is not None
    data = {
        n: examples_of_task(instantiate(c.task.build)(tokenizer=base.tokenizer), base.tokenizer)
        for n, c in tasks.items()
    }
    others = [name for name in tasks if name != settings.tune_on]
    train = list(data[settings.tune_on]["train"].chosen.batches(cfg.data.eval_batch_size))
    importance, moved = _importance([circuits[name] for name in others]), expected_changes(base, train)
    nodes = conflicting(importance, moved, settings.nodes)
    groups = {name: _groups(data[name]["test"]) for name in tasks}
    before = {name: _losses(cfg, base, data[name]["test"]) for name in tasks}
    damage: dict[str, dict[str, list[Tensor]]] = {arm: {name: [] for name in tasks} for arm in ARMS}
    sets = [matched_nodes(base.graph, nodes, 1, int(seed))[0] for seed in settings.seeds]
    for seed, random in zip(settings.seeds, sets, strict=True):
        for arm, frozen in (("nothing", []), ("conflict", nodes), ("random", random)):
            tuned = _tuned(cfg, base, data[settings.tune_on], int(seed), frozen)
            for name in tasks:
                damage[arm][name].append(_losses(cfg, tuned, data[name]["test"]) - before[name])

    def mean(values: Float[Tensor, "*seed pair"], name: str) -> dict[str, Any]:
        return mean_estimate(values, groups[name]).to_dict()

    stacked = {arm: {name: torch.stack(rows) for name, rows in own.items()} for arm, own in damage.items()}
    return {
        "on": settings.tune_on,
        "nodes": nodes,
        "withheld": withheld(base.graph, nodes),
        "random_nodes": sets,
        "overlap": mean_overlap(nodes, sets),
        "conflict": conflict_index(importance, moved),
        "seeds": list(settings.seeds),
        "steps": cfg.tune.steps,
        "loss_before": {name: mean(values, name) for name, values in before.items()},
        "loss_change": {arm: {name: mean(v, name) for name, v in own.items()} for arm, own in stacked.items()},
        "by_seed": {arm: {name: v.mean(1).tolist() for name, v in own.items()} for arm, own in stacked.items()},
        "spared": {
            arm: {name: mean(stacked[arm][name] - stacked["conflict"][name], name) for name in tasks}
            for arm in ("nothing", "random")
        },
    }


def _importance(circuits: Sequence[Circuit]) -> dict[str, float]:
    """Mean share over tasks of each node in its circuit's weight."""
    total: dict[str, float] = {}
    for own in circuits:
        nodes = node_weights(own)
        whole = sum(nodes.values()) or 1.0
        for node, value in nodes.items():
            total[node] = total.get(node, 0.0) + value / whole / len(circuits)
    return total


@torch.no_grad()
def _losses(cfg: DictConfig, subject: Subject, examples: Examples) -> Float[Tensor, "pair"]:
    """Loss on held-out answers, nats a pair."""
    batches = examples.chosen.batches(cfg.data.eval_batch_size)
    return torch.cat([-answer_log_probs(subject.model, b.to(subject.device)).sum(-1).cpu() for b in batches])


def _groups(examples: Examples) -> Int[Tensor, "pair"]:
    """Which held-out answers share a sentence."""
    return torch.cat([batch.group for batch in examples.chosen.batches(len(examples.chosen))])


def _tuned(cfg: DictConfig, base: Subject, examples: dict[str, Examples], seed: int, frozen: Sequence[str]) -> Subject:
    """A copy of the base, tuned supervised in all weights but the frozen nodes'."""
    made = Subject(copy.deepcopy(base.model), base.tokenizer, base.name)
    made.model.requires_grad_(True)
    tune = cfg.tune
    tuner = SupervisedTuner(made.model, Optimisation(tune.steps, tune.lr, tune.warmup, tune.weight_decay), seed)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    callbacks = [Frozen(made, frozen), FiniteLoss(setting="tune.lr")]
    trainer: Trainer = instantiate(
        cfg.trainer, max_steps=tune.steps, callbacks=callbacks, **quiet, **instantiate(cfg.strategy.options)
    )
    trainer.fit(tuner, TuningData(examples, cfg.data.batch_size, seed))
    made.model.requires_grad_(False)
    tuner.to(base.device)
    return made
