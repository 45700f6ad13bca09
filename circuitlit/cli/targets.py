"""Kinds of the settings that a `_target_` is made of: tasks, methods, gates, adapters, loggers, the Trainer.

Each of ours has exactly the settings of its signature that the command line may set; a new one is a line here.
"""

from __future__ import annotations

from collections.abc import Mapping

from circuitlit.cli.kinds import Kind, choice, flag, function, listed, number, path, share, table, text, whole, word

Targets = Mapping[str, Mapping[str, Kind]]

SEED = whole(0, 2**32 - 1)
COUNT = whole(1)
_NUMBERS = {"n_train": COUNT, "n_val": whole(), "n_test": COUNT, "seed": SEED}
_MOST = {"n_train": COUNT | None, "n_val": whole() | None, "n_test": COUNT | None, "seed": SEED}
_RELATIONS = "capital continent language currency symbol kind country profession author origin".split()
_PLAIN = "antonym docstring past_tense two_hop".split()
_NEW_WORDS = "gender_pronoun ioi ioi_hard ioi_single sva".split()
TASKS: Targets = {
    **{f"circuitlit.tasks.{name}": _NUMBERS for name in _PLAIN},
    **{f"circuitlit.tasks.{name}": {**_NUMBERS, "n_new_words": whole()} for name in _NEW_WORDS},
    "circuitlit.tasks.arithmetic": {
        **_NUMBERS,
        "operation": choice("add", "subtract", "multiply", "divide", "composite", "sequence", "lcm", "linear"),
        "low": COUNT,
        "high": COUNT,
    },
    "circuitlit.tasks.boolean": {
        **_NUMBERS,
        "prompt": choice("instruction", "few_shot", "both"),
        "literals": listed(whole(1, 8), 2, 2),
        "chat": flag(),
    },
    "circuitlit.tasks.factual": {**_NUMBERS, "relations": listed(choice(*_RELATIONS), 1) | None},
    "circuitlit.tasks.greater_than": {**_NUMBERS, "n_new_words": whole(), "both_digits": flag()},
    "circuitlit.tasks.induction": {**_NUMBERS, "length": whole(2)},
    "circuitlit.tasks.jsonl": {
        **_MOST,
        "path": path(),
        "val_fraction": share(),
        "test_fraction": share(),
        "drop_bad": flag(),
    },
    "circuitlit.tasks.tracr": {**_MOST, "program": choice("reverse", "proportion")},
}
LOSSES: Targets = {
    "hydra.utils.get_method": {
        "path": function(
            "circuitlit.objective.kl_divergence",
            "circuitlit.objective.answer_cross_entropy",
            "circuitlit.objective.logit_difference_error",
            "circuitlit.objective.negative_metric",
        )
    },
}
_STEPS = {"steps": COUNT}
_PATH = {**_STEPS, "rule": choice("left", "midpoint", "right")}
METHODS: Targets = {
    "circuitlit.discover.acdc": {
        "threshold": number(0) | None,
        "count": COUNT | None,
        "chunk": COUNT,
        "searches": COUNT,
        "bracket": listed(number(above=0), 2, 2),
        "seconds": number(above=0) | None,
    },
    "circuitlit.discover.clean_corrupted": {},
    "circuitlit.discover.eap": {},
    "circuitlit.discover.eap_ig": _PATH,
    "circuitlit.discover.eap_ig_activations": {**_PATH, "own_paths": flag()},
    "circuitlit.discover.exact": {"chunk": COUNT},
    "circuitlit.discover.information_flow": {},
    "circuitlit.discover.mask_gradients": {**_STEPS, "draws": whole()},
    "circuitlit.discover.random_scores": {"seed": SEED},
    "circuitlit.discover.relp": {"constant_patterns": flag()},
}
GATES: Targets = {
    "circuitlit.discover.HardConcrete": {
        "temperature": number(above=0),
        "low": number(most=0),
        "high": number(1),
    },
    "circuitlit.discover.SigmoidTopK": {"temperature": number(above=0)},
    "circuitlit.discover.UniformGradient": {},
}
LEARNERS: Targets = {
    "circuitlit.discover.MaskLearner": {},
    "circuitlit.discover.EdgePruning2024": {
        "edge_target": number(0),
        "node_target": number(0) | None,
        "lr_multiplier": number(0),
    },
}
SCHEDULES: Targets = {
    "circuitlit.discover.Schedule": {
        "steps": COUNT,
        "lr": number(0, most=1e6),
        "lr_final": share(),
        "lr_warmup": whole(),
        "start_sparsity": share(one=False) | None,
        "warmup": share(),
        "fall": choice("geometric", "linear"),
        "harden": share(),
        "hard": share(),
        "final_noise": share(zero=False),
        "sizes": listed(share(zero=False), 2, 2) | None,
    },
}
_MODULES = listed(text(), 1) | text() | None
_LOW_RANK = {"alpha": number(above=0), "dropout": share(one=False), "target_modules": _MODULES}
ADAPTERS: Targets = {
    "circuitlit.finetune.lora": {
        **_LOW_RANK,
        "r": COUNT,
        "rank_pattern": table(COUNT),
        "alpha_pattern": table(number(above=0)),
    },
    "circuitlit.finetune.adalora": {
        **_LOW_RANK,
        "init_r": COUNT,
        "target_r": COUNT,
        "warmup": share(),
        "final": share(),
        "every": COUNT,
        "orthogonality": number(0),
    },
    "circuitlit.finetune.ia3": {"target_modules": _MODULES, "feedforward_modules": listed(text(), 1) | None},
}
TUNERS: Targets = {
    "circuitlit.finetune.SupervisedTuner": {},
    "circuitlit.finetune.PreferenceTuner": {"beta": number(0)},
    "circuitlit.finetune.RewardTuner": {"group": whole(2), "beta": number(0)},
}
LOGGERS: Targets = {
    "circuitlit.cli.loggers.wandb_logger": {
        "project": word(),
        "name": text(),
        "folder": path(),
        "run_id": word(),
        "offline": flag(),
        "entity": word() | None,
        "group": text() | None,
        "tags": listed(text()),
        "job_type": text() | None,
        "notes": text() | None,
    },
    "lightning.pytorch.loggers.CSVLogger": {"save_dir": path(), "name": text()},
}
STRATEGIES: Targets = {
    "circuitlit.cli.strategies.MaskDDP": {},
    "circuitlit.cli.strategies.MaskDeepSpeed": {"stage": whole(1, 2)},
}
_LIMIT = whole() | share()
TRAINERS: Targets = {
    "lightning.Trainer": {
        "accelerator": choice("auto", "cpu", "gpu", "cuda", "mps"),
        "precision": choice("32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"),
        "max_steps": COUNT,
        "max_epochs": whole(-1),
        "accumulate_grad_batches": COUNT,
        "log_every_n_steps": whole(),
        "num_sanity_val_steps": whole(-1),
        "limit_val_batches": _LIMIT,
        "use_distributed_sampler": flag(),
        "enable_model_summary": flag(),
        "enable_progress_bar": flag(),
        "enable_checkpointing": flag() | whole(),
        "gradient_clip_val": number(0) | None,
        "default_root_dir": path(),
    },
}
