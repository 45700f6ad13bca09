"""uv run --group trl python launch/watch.py trl: a circuit watched while SmolLM2 is fine-tuned, and losses compared.

    python launch/watch.py {trl,hf,lightning} [--steps 60] [--lr 2e-5] [--break-lr 3e-3] [--every 20] [--batch 2]
                           [--length 24] [--pairs 16] [--lora] [--out FOLDER]

Trains three times on the same short texts: without the callback, with it, and with it at a learning rate that breaks
the circuit. The losses of the first two must be equal to the last digit; the alarm must sound in the third alone.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from circuitlit import CircuitWatch, LightningCircuitWatch, WatchSettings, ioi, load_subject

NAMES = "Anna Peter Maria Jonas Clara Felix Laura Simon".split()
PLACES = "market river station library garden harbour theatre bakery".split()
THINGS = "apples letters candles maps flowers shoes books bread".split()


def texts() -> list[str]:
    """Short sentences that have nothing to do with the pairs."""
    rows = enumerate(product(NAMES, PLACES))
    return [f"{name} walked to the {place} and bought {THINGS[n % 8]} there." for n, (name, place) in rows]


def model_of(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """SmolLM2, ready to be trained, and its tokenizer."""
    subject = load_subject("smollm2")
    tokenizer, model = subject.tokenizer, subject.model.requires_grad_(True).train()
    assert tokenizer is not None
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if arguments.lora:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(
            model, LoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM")
        )
    return model, tokenizer


def rows_of(tokenizer: Any, length: int) -> list[dict[str, list[int]]]:
    """The texts as tokens, each as often as a row has room for it."""
    rows = []
    for text in texts():
        ids = tokenizer(text)["input_ids"]
        rows.append({"input_ids": (ids * (1 + length // len(ids)))[:length]})
    return rows


def by_trl(arguments: argparse.Namespace, lr: float, watch: CircuitWatch | None, out: Path) -> list[float]:
    """Losses of an SFTTrainer."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = model_of(arguments)
    config = SFTConfig(**settings(arguments, lr, out), max_length=arguments.length)
    data = Dataset.from_list([{"text": text} for text in texts()])
    trainer = SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=own(watch))
    trainer.train()
    return losses(trainer)


def by_hf(arguments: argparse.Namespace, lr: float, watch: CircuitWatch | None, out: Path) -> list[float]:
    """Losses of a Trainer."""
    model, tokenizer = model_of(arguments)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**settings(arguments, lr, out)),
        train_dataset=rows_of(tokenizer, arguments.length),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
        callbacks=own(watch),
    )
    trainer.train()
    return losses(trainer)


def settings(arguments: argparse.Namespace, lr: float, out: Path) -> dict[str, Any]:
    """Of either trainer of Hugging Face."""
    return {
        "output_dir": str(out),
        "max_steps": arguments.steps,
        "per_device_train_batch_size": arguments.batch,
        "learning_rate": lr,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": torch.cuda.is_available(),
        "seed": 0,
    }


def own(watch: CircuitWatch | None) -> list[CircuitWatch]:
    """The trainer's callbacks."""
    return [] if watch is None else [watch]


def losses(trainer: Trainer) -> list[float]:
    """Of every step, with the norms of the gradients."""
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return [row[name] for row in rows for name in ("loss", "grad_norm")]


def by_lightning(
    arguments: argparse.Namespace, lr: float, watch: LightningCircuitWatch | None, out: Path
) -> list[float]:
    """Losses of Lightning's Trainer."""
    import lightning

    model, tokenizer = model_of(arguments)
    kept: list[float] = []

    class Tuner(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
            loss = self.model(**batch).loss
            kept.append(float(loss))
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.model.parameters(), lr)

    lightning.seed_everything(0, verbose=False)
    rows = rows_of(tokenizer, arguments.length)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    loader = torch.utils.data.DataLoader(rows, arguments.batch, shuffle=True, collate_fn=collator)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(
        max_steps=arguments.steps,
        devices=1,
        callbacks=own(watch),
        default_root_dir=out,
        gradient_clip_val=1.0,
        precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
        **quiet,
    )
    trainer.fit(Tuner(), loader)
    return kept


def main() -> int:
    """Train three times and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("trainer", choices=("trl", "hf", "lightning"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--break-lr", type=float, default=3e-3)
    parser.add_argument("--every", type=int, default=None)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp())
    train = {"trl": by_trl, "hf": by_hf, "lightning": by_lightning}[arguments.trainer]
    pairs = partial(ioi, n_train=64, n_val=8, n_test=64, seed=0)
    watched = WatchSettings(pairs=arguments.pairs)

    def watch(name: str) -> Any:
        known = {"every": arguments.every, "folder": out / name, "settings": watched}
        if arguments.trainer == "lightning":
            return LightningCircuitWatch(pairs, load_subject("smollm2").tokenizer, **known)
        return CircuitWatch(pairs, **known)

    plain = train(arguments, arguments.lr, None, out / "plain")
    gc.collect()
    calm, broken = watch("calm"), watch("broken")
    seen = train(arguments, arguments.lr, calm, out / "calm_run")
    gc.collect()
    equal = len(plain) == len(seen) and all(one == other for one, other in zip(plain, seen, strict=True))
    print(f"{len(plain)} figures of {arguments.steps} steps, equal to the last digit: {equal}; the last {plain[-2:]}")
    print(calm.result.to_frame().to_string(), calm.result.limits, f"cost {calm.result.cost:.1%}", sep="\n")
    train(arguments, arguments.break_lr, broken, out / "broken_run")
    print(broken.result.to_frame().to_string(), broken.result.reason, sep="\n")
    print(
        f"learning rate {arguments.lr:g}: {calm.result.status}; {arguments.break_lr:g}: {broken.result.status}; {out}"
    )
    return int(not (equal and calm.result.status == "OK" and broken.result.status == "DRIFT"))


if __name__ == "__main__":
    sys.exit(main())
