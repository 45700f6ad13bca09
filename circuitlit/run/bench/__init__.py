"""Speed and memory: `python -m circuitlit bench`, of steps, whole runs, scaling and attribution."""

from __future__ import annotations

import torch
from omegaconf import DictConfig

from circuitlit.cli import ranks
from circuitlit.cli.checks import run_dir
from circuitlit.cli.finish import prepare
from circuitlit.errors import UserError
from circuitlit.evaluate.cost.benchmark import Benchmark
from circuitlit.progress import CONSOLE
from circuitlit.report.bench import print_benchmark
from circuitlit.run.bench.kinds import attribution, length, memory, scaling, steps
from circuitlit.run.bench.whole import whole_run

KINDS = {"step": steps, "run": whole_run, "scaling": scaling, "length": length, "eap": attribution}


def run(cfg: DictConfig) -> Benchmark:
    """Measure what `bench` names, print a table and write bench.json.

    Raises:
        UserError: a setting out of range, or a model without architecture numbers.
    """
    if cfg.bench not in KINDS:
        raise UserError(f"bench={cfg.bench} is not one of {', '.join(KINDS)}")
    if cfg.repeats < 2 or cfg.warmup < 0:
        raise UserError(f"repeats={cfg.repeats} and warmup={cfg.warmup}: at least 2 and 0 are needed")
    _refuse_ignored(cfg)
    prepare(cfg, cfg.matmul_precision if torch.cuda.is_available() else "highest")
    result = memory(cfg) if cfg.plan and cfg.bench != "length" else KINDS[cfg.bench](cfg)
    print_benchmark(result, CONSOLE)
    if ranks.is_writer():
        result.save(run_dir())
    ranks.leave()
    CONSOLE.print(f"{run_dir() / result.file}", highlight=False, soft_wrap=True)
    return result


def _refuse_ignored(cfg: DictConfig) -> None:
    """Refuse settings that this measurement would not look at.

    Raises:
        UserError: the first of them.
    """
    kind = cfg.bench
    if kind != "run" and cfg.mask.roles:
        raise UserError("random tokens have no roles; leave mask.roles out, or take bench=run")
    if cfg.plan and kind not in ("step", "length"):
        raise UserError(f"plan=true reckons training steps, not bench={kind}; take bench=step or bench=length")
    if cfg.profile and kind not in ("step", "length"):
        raise UserError(f"profile=true is for training steps, not for bench={kind}; take bench=step")
    if kind in ("scaling", "length") and len(cfg.dtypes or ()) > 1:
        raise UserError(f"bench={kind} measures one type of numbers; give dtypes=[{cfg.dtypes[-1]}]")
