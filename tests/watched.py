"""A tiny model in training with a callback that watches it: what the tests of the watch share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

from circuitlit import Pairs, WatchSettings

SETTINGS = WatchSettings(sparsity=0.6, pairs=8, batch_size=4, passages=3, length=6, resamples=4)
STEPS = 8


def tokenizer_of(local: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(local / "model", pad_token="[unk]")


def pairs_of(local: Path) -> Pairs:
    return Pairs.from_list([json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()])


def tiny(local: Path) -> Any:
    """GPT-2 with its dropout, so that a random number drawn elsewhere changes the losses."""
    model = AutoModelForCausalLM.from_pretrained(local / "model")
    assert model.config.resid_pdrop > 0
    return model.train()


def examples() -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, 41, (8,), generator=draw) for _ in range(64)]
    return [{"input_ids": row, "labels": row} for row in rows]


def hf_trainer(local: Path, out: Path, *callbacks: Any, model: Any = None, **settings: Any) -> Trainer:
    """A Trainer that has trained."""
    own = {
        "output_dir": str(out),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 1,
    }
    resume = settings.pop("resume", None)
    trainer = Trainer(
        model=model or tiny(local),
        args=TrainingArguments(**own | settings),
        train_dataset=examples(),  # type: ignore[arg-type]
        processing_class=tokenizer_of(local),
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def own_log(trainer: Trainer) -> list[dict[str, Any]]:
    """All that the trainer logs itself, but for seconds."""
    rows = [row for row in trainer.state.log_history if not any(name.startswith("circuit/") for name in row)]
    slow = ("runtime", "per_second")
    return [{name: value for name, value in row.items() if not name.endswith(slow)} for row in rows]


def state_of(model: torch.nn.Module) -> dict[str, Any]:
    """Everything about a model that a training depends on, but for the numbers in its weights."""
    return {
        "modes": [(name, module.training) for name, module in model.named_modules()],
        "hooks": [
            (name, [list(own) for key, own in vars(module).items() if key.endswith("hooks") and own])
            for name, module in model.named_modules()
        ],
        "attributes": [(name, sorted(vars(module))) for name, module in model.named_modules()],
        "trainable": [(name, one.requires_grad, id(one), one.data_ptr()) for name, one in model.named_parameters()],
        "gradients": [
            None if one.grad is None else (id(one.grad), one.grad.sum().item()) for one in model.parameters()
        ],
        "checkpointing": [
            [getattr(module, f"{name}_checkpointing", None) for name in ("gradient", "activation")]
            for module in model.modules()
        ],
    }
