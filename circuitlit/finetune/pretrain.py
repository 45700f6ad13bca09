"""Small GPT-NeoX models trained from scratch, with checkpoints on a logarithmic axis from step 0 on."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.files import write_json
from circuitlit.finetune.checkpoints import save_model
from circuitlit.finetune.mixture import KINDS, VOCABULARY, mixture, mixture_pairs, mixture_tokenizer
from circuitlit.finetune.tuner import Optimisation

PAIRS = {"train": 64, "val": 32, "test": 64}


@dataclass(frozen=True)
class Recipe:
    """All that a series of checkpoints depends on, plain types only.

    Attributes:
        hidden_size, layers, heads: of the model; the MLP is four times as wide.
        steps, batch_size, length: optimizer steps, rows a step, tokens a row.
        lr, warmup, weight_decay: as in `Optimisation`.
        shares: of the kinds of the mixture.
        per_doubling: checkpoints kept while the step doubles; 1 keeps 0, 1, 2, 4 ... and the last.
        seed: of weights and rows.
    """

    hidden_size: int
    layers: int
    heads: int
    steps: int
    batch_size: int
    length: int
    lr: float
    warmup: float
    weight_decay: float
    shares: dict[str, float]
    per_doubling: int
    seed: int

    def __post_init__(self) -> None:
        counts = ("hidden_size", "layers", "heads", "steps", "batch_size", "per_doubling")
        wrong = [name for name in counts if not isinstance(getattr(self, name), int) or getattr(self, name) < 1]
        if wrong:
            raise UserError(f"pretrain: {wrong[0]}={getattr(self, wrong[0])} is not a whole number of at least 1")
        if self.hidden_size % self.heads or self.hidden_size // self.heads % 2:
            raise UserError(f"pretrain: hidden_size={self.hidden_size} does not split into {self.heads} even heads")

    def model(self) -> GPTNeoXForCausalLM:
        """The untrained model: parallel blocks, rotary positions over whole heads."""
        torch.manual_seed(self.seed)
        config = GPTNeoXConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=self.hidden_size,
            intermediate_size=4 * self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=max(256, self.length),
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
            use_parallel_residual=True,
            initializer_range=self.hidden_size**-0.5,
            bos_token_id=VOCABULARY["<s>"],
            eos_token_id=VOCABULARY["<s>"],
        )
        return GPTNeoXForCausalLM(config)


def log_steps(steps: int, per_doubling: int = 1) -> list[int]:
    """0, 1, then `per_doubling` steps for each doubling as far as they differ, and the last step."""
    spread, place = [], 0
    while (step := round(2 ** (place / per_doubling))) < steps:
        spread.append(step)
        place += 1
    return sorted({0, *spread, steps})


class Pretrainer(LightningModule):
    """Predicts every next token.

    Args:
        model: what is trained, all of it.
        optimisation: steps and learning rate.
    """

    def __init__(self, model: PreTrainedModel, optimisation: Optimisation) -> None:
        super().__init__()
        self.model, self.optimisation = model, optimisation
        self.losses: list[float] = []

    def training_step(self, batch: list[Int[Tensor, "batch pos"]], batch_idx: int) -> Float[Tensor, ""]:
        """Cross-entropy in nats per token."""
        ids = batch[0].long()
        logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        self.log("train/loss", loss.detach(), batch_size=len(ids))
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW; vectors have no weight decay."""
        groups = [
            {
                "params": [p for p in self.model.parameters() if p.ndim > 1],
                "weight_decay": self.optimisation.weight_decay,
            },
            {"params": [p for p in self.model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        on_gpu = next(self.model.parameters()).is_cuda
        optimizer = torch.optim.AdamW(groups, lr=self.optimisation.lr, betas=(0.9, 0.98), fused=on_gpu)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.optimisation.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class SeriesFolders(Callback):
    """Saves the model under `step{N}/` after some steps and, with the last, `checkpoints.json`.

    Args:
        folder: where the folders go.
        steps: after which optimizer steps; 0 is the untrained model.
        tokenizer: saved with each.
        tokens: in a step.
    """

    def __init__(self, folder: Path, steps: list[int], tokenizer: PreTrainedTokenizerBase, tokens: int) -> None:
        self.folder, self.steps, self.tokenizer, self.tokens = folder, steps, tokenizer, tokens
        self.rows: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the untrained model."""
        self._save(trainer, pl_module, None)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Save when it is time."""
        self._save(trainer, pl_module, outputs["loss"])

    def _save(self, trainer: Trainer, trained: LightningModule, loss: Tensor | None) -> None:
        step = trainer.global_step
        if step not in self.steps or not trainer.is_global_zero:
            return
        assert isinstance(trained, Pretrainer)
        save_model(trained.model, self.tokenizer, self.folder / f"step{step}")
        value = None if loss is None else float(loss)
        self.rows.append({"step": step, "folder": f"step{step}", "tokens": step * self.tokens, "loss": value})
        if step == self.steps[-1]:
            write_json(self.folder / "checkpoints.json", {"kind": "model", "checkpoints": self.rows})


def pretrain(recipe: Recipe, folder: Path, trainer: Any) -> bool:
    """Train a series of checkpoints into a folder, if it is not there yet.

    The rows are generated ahead. A series that was interrupted is trained anew, to the same weights.

    Args:
        recipe: what is trained.
        folder: gets `step{N}/` with model and tokenizer, `checkpoints.json` and `pretrain.json`.
        trainer: makes a Lightning Trainer from keyword arguments.

    Returns:
        True if it was trained, False if it was there.

    Raises:
        UserError: the folder holds another series.
    """
    settings = folder / "pretrain.json"
    if settings.is_file():
        if json.loads(settings.read_text()) != asdict(recipe):
            raise UserError(f"{folder} holds a series of other settings; choose another folder: pretrain.folder=DIR")
        if (folder / "checkpoints.json").is_file():
            return False
    folder.mkdir(parents=True, exist_ok=True)
    write_json(settings, asdict(recipe))
    rows = mixture(recipe.shares, recipe.steps * recipe.batch_size, recipe.length, recipe.seed)
    batches = torch.from_numpy(rows).unflatten(0, (recipe.steps, recipe.batch_size))
    loader = DataLoader(TensorDataset(batches), batch_size=None)
    optimisation = Optimisation(recipe.steps, recipe.lr, recipe.warmup, recipe.weight_decay)
    steps = log_steps(recipe.steps, recipe.per_doubling)
    saver = SeriesFolders(folder, steps, mixture_tokenizer(), recipe.batch_size * (recipe.length - 1))
    fit: Trainer = trainer(max_steps=recipe.steps, callbacks=[saver], logger=False, enable_checkpointing=False)
    fit.fit(Pretrainer(recipe.model().train(), optimisation), loader)
    return True


def write_tasks(folder: Path) -> None:
    """Pairs that test what each kind of the mixture teaches, as `KIND.jsonl`, the same for every series."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        sizes = {split: min(count, 16) if kind == "successor" else count for split, count in PAIRS.items()}
        pairs = mixture_pairs(kind, sum(sizes.values()), seed=0)
        split_of = [split for split, count in sizes.items() for _ in range(count)]
        lines = [json.dumps(pair | {"split": split}) for pair, split in zip(pairs, split_of, strict=True)]
        partial = folder / f"{kind}.jsonl.{os.getpid()}"  # other processes may read and write the same file
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(partial, folder / f"{kind}.jsonl")
