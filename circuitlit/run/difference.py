"""The learned sparse difference of a base and a tuned model: a shared mask, and the edges whose masks must differ."""

from __future__ import annotations

from functools import partial

from hydra.utils import instantiate
from omegaconf import DictConfig

from circuitlit.cli import ranks
from circuitlit.cli.build import build_method, build_workbench
from circuitlit.cli.checks import run_dir
from circuitlit.cli.configs import typed
from circuitlit.cli.finish import finish, prepare
from circuitlit.cli.fit import fit
from circuitlit.cli.sides import load_both
from circuitlit.compare.sparse_difference import CURVES, LearnedDifference, find_difference
from circuitlit.errors import UserError
from circuitlit.progress import phase
from circuitlit.report.difference import print_difference, write_difference


def run(cfg: DictConfig) -> LearnedDifference:
    """Learn both circuits and their difference, and write `difference.json`, a page and the circuits.

    Raises:
        UserError: a setting, file or model that cannot be used.
    """
    if cfg.mask.sites != "edges" or cfg.mask.roles or cfg.sparsity.target is None:
        raise UserError(
            "difference needs masks on edges alone (mask.sites=edges mask.roles=false) and a sparsity.target"
        )
    own = ("mask.gates", "mask.learner", "mask.constraint_gradient", "mask.schedule.hard", "mask.init_from")
    unused = [key for key in sorted(typed()) if key.startswith((*own, "objective.error_weight"))]
    if unused or cfg.mask.name != "hard_concrete":
        what = ", ".join(unused) or f"mask={cfg.mask.name}"
        raise UserError(f"difference has gates and a start of its own and no use for {what}; leave it as it is")
    if ranks.processes(cfg) > 1 or cfg.strategy.get("shard"):
        raise UserError("difference runs in one process; use strategy=single")
    prepare(cfg)
    with phase("load", "Loading both models"):
        base, tuned = (build_workbench(cfg, subject) for subject in load_both(cfg))
    result = find_difference(
        base,
        tuned,
        build_method(cfg),
        penalty=cfg.difference.penalty,
        pairs=cfg.difference.pairs,
        schedule=instantiate(cfg.mask.schedule),
        sparsity=cfg.sparsity.target,
        objective=instantiate(cfg.objective.loss),
        init=cfg.mask.init,
        init_scale=cfg.mask.init_scale,
        seed=cfg.seed,
        train=partial(fit, cfg, names=CURVES),
        folder=run_dir(),
    )
    return finish(cfg, result, base.subject, write_difference, print_difference)
