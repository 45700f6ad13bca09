"""The settings that all verbs share and what each may be: a new setting is one line here, beside its default in conf/.

Those of single verbs are in verb_settings.py, what a `_target_` is made of is in targets.py.
"""

from __future__ import annotations

from circuitlit.cli.kinds import (
    Kind,
    built,
    choice,
    flag,
    kind,
    listed,
    mapping,
    number,
    path,
    preset,
    share,
    table,
    text,
    whole,
    word,
)
from circuitlit.cli.targets import (
    ADAPTERS,
    COUNT,
    GATES,
    LEARNERS,
    LOGGERS,
    LOSSES,
    METHODS,
    SCHEDULES,
    SEED,
    STRATEGIES,
    TASKS,
    TRAINERS,
    TUNERS,
)

SOME = whole()  # none is possible, too
DEVICES = kind("a number of processes or auto", lambda value: value == "auto" or (type(value) is int and value > 0))
CIRCUIT = path("a run's folder or a circuit file")
TEXT = path('a .jsonl file with "text" in each line, or a file of plain text', "file")


def entries(group: str, least: int = 0) -> Kind:
    """A list of presets of a group, or of what a study calls an entry."""
    own = mapping({"name": text(), "with": listed(text()), "cost": number(above=0)}, ("name", "with"))
    return listed(preset(group) | own, least)


SETTINGS: dict[str, Kind] = {
    "verb": text(),
    "seed": SEED,
    "run_id": word(),
    "resume": path("the folder of a run that was stopped", "folder") | None,
    "fail": flag(),
    "overwrite": flag(),
    "ckpt_path": path("a .ckpt file of a run's checkpoints/ folder") | None,
    "matmul_precision": choice("highest", "high", "medium"),
    "sparsity.target": share(zero=False, one=False) | None,
    "sparsity.select": choice("top_k", "greedy"),
    "data.batch_size": COUNT,
    "data.eval_batch_size": COUNT,
    "data.pad_to": choice("batch", "bucket", "max"),
    "data.num_workers": SOME,
    "evaluate.controls": COUNT,
    "evaluate.control_pairs": COUNT,
    "evaluate.rivals": listed(preset("method")),
    "evaluate.probe_pairs": COUNT,
    "evaluate.least_pairs": COUNT,
    "evaluate.smoke": flag(),
    "evaluate.max_kl_share": number(0),
    "task.name": text(),
    "task.min_accuracy": share(),
    "task.build": built(TASKS),
    "model.name": text(),
    "model.source": choice("hub", "local", "package", "tracr"),
    "model.path": path() | None,
    "model.program": choice("reverse", "proportion"),
    "model.revision": text() | None,
    "model.dtype": choice("float32", "bfloat16", "float16", "float64"),
    "model.trust_remote_code": flag(),
    "model.architecture": mapping({"model_type": text()}, open=True) | None,
    "adapter.path": text() | None,
    "adapter.lr": number(above=0, most=1e6),
    "adapter.train": flag(),
    "adapter.build": built(ADAPTERS) | None,
    "mask.name": text(),
    "mask.learner": built(LEARNERS),
    "mask.gates": built(GATES),
    "mask.schedule": built(SCHEDULES),
    "mask.roles": flag(),
    "mask.sites": choice("edges", "nodes", "both"),
    "mask.constraint_gradient": flag(),
    "mask.init": choice("equal", "ranks", "confident"),
    "mask.init_from": choice("method") | CIRCUIT | None,
    "mask.init_scale": number(most=1000),
    "mask.panel": COUNT,
    "mask.recompute": flag() | choice("reads"),
    "mask.kernels": choice("auto", "torch", "triton"),
    "mask.capture": flag(),
    "mask.cache_gib": number(0),
    "objective.name": text(),
    "objective.loss": built(LOSSES),
    "ablation.kind": choice("interchange", "zero", "mean", "optimal"),
    "ablation.positional": flag(),
    "ablation.steps": COUNT,
    "ablation.lr": number(above=0, most=1e6),
    "method.name": text(),
    "method.max_batches": COUNT | None,
    "method.objective": built(LOSSES),
    "method.score": built(METHODS),
    "tune.name": text(),
    "tune.steps": COUNT,
    "tune.circuit": CIRCUIT | None,
    "tune.data": path("a jsonl file of prompt, chosen and rejected", "file") | None,
    "tune.score": choice("accuracy", "metric"),
    "tune.checkpoints": SOME | listed(SOME),
    "tune.probe_every": SOME,
    "tune.probe_pairs": SOME,
    "tune.lr": number(above=0, most=1e6),
    "tune.warmup": share(one=False),
    "tune.weight_decay": number(0),
    "tune.freeze": listed(text()),
    "tune.build": built(TUNERS),
    "trainer": built(TRAINERS),
    "strategy.name": text(),
    "strategy.shard.offload": flag(),
    "strategy.options": mapping(
        {"strategy": built(STRATEGIES) | text(), "devices": DEVICES, "num_nodes": COUNT}, open=True
    ),
    "callbacks.progress_bar": flag(),
    "callbacks.history_every": COUNT,
    "callbacks.snapshot_every": COUNT,
    "callbacks.stop_at_convergence": flag(),
    "callbacks.probe_every": SOME,
    "callbacks.probe_pairs": SOME,
    "callbacks.checkpoint_every": SOME,
    "logger": table(built(LOGGERS) | None),
    "paths.runs": path(),
    "paths.cache_dir": path(),
}
