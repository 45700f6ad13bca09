"""Fine-tuning: the tuned model, checkpoints on the way, and what it does on held-out pairs."""

from __future__ import annotations

from functools import partial

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from circuitlit.cli.build import build_subject, plain, provenance
from circuitlit.cli.checkpoints import contents
from circuitlit.cli.checks import run_dir
from circuitlit.cli.finish import finish, prepare
from circuitlit.cli.folder import begin
from circuitlit.cli.resume import TUNING, trained_with
from circuitlit.cli.tune import build_examples, check_tuning, fit_tuner
from circuitlit.finetune.finetune_model import TunedModel, finetune_model
from circuitlit.graph import load_circuit
from circuitlit.progress import phase
from circuitlit.report import print_behaviour


def run(cfg: DictConfig) -> TunedModel:
    """Tune and write everything into the run directory."""
    check_tuning(cfg)
    prepare(cfg, cfg.matmul_precision if torch.cuda.is_available() else "highest")
    with phase("load", f"Loading {cfg.model.name} and the examples of {cfg.tune.data or cfg.task.name}"):
        subject = build_subject(cfg)
        examples = build_examples(cfg, subject)
        train = examples["train"]
        rows = [*train.chosen.rows, *(train.rejected.rows if train.rejected else ())]
        facts = provenance(cfg, subject) | {"tune": plain(cfg.tune)}
        trained = trained_with(cfg, TUNING, 1) | contents(rows, subject.model)
        circuit = load_circuit(cfg.tune.circuit, subject.graph) if cfg.tune.circuit else None
        build = cfg.adapter.build
        adapter = None if build is None else instantiate(build, _convert_="all")(subject.model, cfg.tune.steps)
    begin(cfg)
    settings = {name: cfg.tune[name] for name in ("steps", "lr", "warmup", "weight_decay", "score", "probe_pairs")}
    result = finetune_model(
        subject,
        examples,
        cfg.tune.name,
        adapter=adapter,
        adapter_name=None if build is None else build["_target_"].rsplit(".", 1)[-1],
        circuit=circuit,
        **settings,
        batch_size=cfg.data.batch_size,
        eval_batch_size=cfg.data.eval_batch_size,
        make=instantiate(cfg.tune.build, _convert_="all"),
        fit=partial(fit_tuner, cfg, subject, trained),
        folder=run_dir(),
        task=cfg.tune.data or cfg.task.name,
        seed=cfg.seed,
    )
    return finish(cfg, result, facts, None, print_behaviour, run_dir() / "tuned")
