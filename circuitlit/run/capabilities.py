"""What tuning gained and lost over several tasks, and the smallest set of nodes that carries each gain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import seed_everything
from omegaconf import DictConfig

from circuitlit.cli.build import encoded, plain, provenance
from circuitlit.cli.checks import run_dir
from circuitlit.cli.sides import load_both, task_settings
from circuitlit.compare.capability import capabilities, greedy_order, smallest_prefix
from circuitlit.compare.effects import PairBed, as_dict, gain_share, plain_logits
from circuitlit.compare.matched import matched_nodes, mean_overlap
from circuitlit.compare.transplant import Transplant, everything
from circuitlit.errors import UserError
from circuitlit.evaluate.statistics import mean_estimate, mean_of
from circuitlit.evaluate.testing import LEAST_DRAWS, enough_draws, rank_p, until_clear, with_holm
from circuitlit.files import write_json
from circuitlit.model.slices import READOUT
from circuitlit.objective import Outcome
from circuitlit.progress import CONSOLE, Clock
from circuitlit.report.capabilities import print_capabilities, write_capabilities
from circuitlit.tasks import EncodedPairs, PairsModule


def run(cfg: DictConfig) -> dict[str, Any]:
    """Judge every task and write `capabilities.json` and a page into the run directory.

    Raises:
        UserError: a setting, file or model that cannot be used.
    """
    settings = cfg.capabilities
    if settings.draws is not None and settings.draws < LEAST_DRAWS:
        raise UserError(f"capabilities.draws={settings.draws} is too few random sets; take at least {LEAST_DRAWS}")
    if settings.by not in ("activations", "weights"):
        raise UserError(f"capabilities.by={settings.by} is neither activations nor weights; choose one")
    if not 0 < settings.share <= 1 or not 0 <= settings.chance < 1:
        raise UserError("capabilities.share must be in (0, 1], capabilities.chance in [0, 1)")
    tasks = task_settings(settings.tasks, "capabilities.tasks") or {cfg.task.name: cfg}
    seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision("highest")
    clock = Clock()
    with clock.phase("load", "Loading both models"):
        base, tuned = load_both(cfg)
        move = Transplant(base, tuned)
    outcomes, data = {}, {}
    for name, own in tasks.items():
        with clock.phase(f"behaviour_{name}", f"Testing both on {name}"):
            data[name] = encoded(own, instantiate(own.task.build)(tokenizer=base.tokenizer), base)
            bed = _bed(own, data[name].test, move, None)
            outcomes[name] = bed.full, bed.measure(lambda batch: plain_logits(tuned, batch))
    found = capabilities(outcomes, settings.chance, settings.min_effect, settings.alpha)
    acquired: dict[str, Any] = {}
    for name, capability in found.items():
        if capability.verdict in ("gained", "improved"):
            with clock.phase(f"circuit_{name}", f"Looking for the nodes that carry the gain on {name}"):
                acquired[name] = _acquisition(tasks[name], data[name], move)
    result = {
        "base": {"name": base.name, **base.provenance},
        "tuned": {"name": tuned.name, **tuned.provenance},
        "settings": plain(settings),
        "seed": cfg.seed,
        "tasks": {name: capability.to_dict() for name, capability in found.items()},
        "acquisition": with_holm(acquired),
        **clock.times(),
        "provenance": provenance(cfg, base),
    }
    write_json(run_dir() / "capabilities.json", result)
    page = write_capabilities(run_dir())
    print_capabilities(result, CONSOLE)
    for path in (run_dir() / "capabilities.json", page):
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return result


def _bed(cfg: DictConfig, pairs: EncodedPairs, move: Transplant, most: int | None) -> PairBed:
    order = range(len(pairs) if most is None else min(most, len(pairs)))
    return PairBed(move.host, pairs.batches(cfg.data.eval_batch_size, order=order))


def _acquisition(cfg: DictConfig, data: PairsModule, move: Transplant) -> dict[str, Any]:
    """The shortest greedy set that carries enough of the gain: chosen on validation, measured on test pairs."""
    settings, graph = cfg.capabilities, move.graph
    choose = _bed(cfg, data.val if len(data.val) else data.train, move, settings.pairs)
    test = _bed(cfg, data.test, move, None)
    target = choose.measure(lambda batch: plain_logits(move.donor, batch))

    def moved(bed: PairBed, nodes: Sequence[str]) -> Outcome:
        if settings.by == "activations":
            return bed.measure(lambda batch: move.logits(nodes, batch.clean, batch.positions))
        with move.weights(nodes) as copy:
            return bed.measure(lambda batch: plain_logits(copy, batch))

    gap = mean_estimate(target.metric - choose.full.metric, target.group)
    single = {node: moved(choose, [node]) for node in everything(graph)}
    order = greedy_order(choose.full, single, 1.0 if (gap.value or 0.0) >= 0 else -1.0)
    nodes, tried = smallest_prefix(order, choose.full, target, lambda s: moved(choose, s), settings.share)
    found: dict[str, Any] = {"order": order, "tried": tried, "nodes": nodes, "by": settings.by, "gap": as_dict(gap)}
    if nodes is None:
        return found
    donor = test.measure(lambda batch: plain_logits(move.donor, batch))
    sets = matched_nodes(graph, nodes, settings.draws or enough_draws(len(settings.tasks)), cfg.seed)
    fixed = [node for node in nodes if node in ("input", READOUT)]
    own = gain_share(test.full, donor, moved(test, nodes))
    tries = (gain_share(test.full, donor, moved(test, [*fixed, *members])).value for members in sets)
    shares = until_clear([own.value], tries, lambda share: [share])
    known = [share for share in shares if share is not None]
    return found | {
        "gain_share": as_dict(own),
        "random_gain_share": as_dict(mean_of(known)) if known else None,
        "rank_p": rank_p(own.value, known) if own.value is not None else None,
        "overlap": mean_overlap([node for node in nodes if node not in fixed], sets),
        "fixed": fixed,
    }
