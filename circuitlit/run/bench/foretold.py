"""What a mask run will take, said before its first step: minutes from a timed step, memory from the plan."""

from __future__ import annotations

import os

import torch
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from circuitlit.discover import MaskLearner
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.cost.memory import memory_parts, meta_copy
from circuitlit.evaluate.cost.timer import now
from circuitlit.graph.layout import scatter_edges
from circuitlit.progress import duration, say
from circuitlit.run.bench.data import step_shape
from circuitlit.tasks.pair import Batch


def room(device: torch.device) -> float:
    """Bytes of a GPU, or of this machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Foretold(Callback):
    """Says what a mask run will take, before its first step: minutes from a timed step, memory from the plan.

    The step is taken back: training is bit for bit what it is without it.

    Args:
        cfg: the run's settings.
        bench: subject, pairs and masked model.
        evaluated: pairs that circuits are run on after training.
    """

    def __init__(self, cfg: DictConfig, bench: Workbench, evaluated: int) -> None:
        self.cfg, self.bench, self.evaluated = cfg, bench, evaluated

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reckon, time, speak."""
        assert isinstance(pl_module, MaskLearner)
        loader = self.bench.data.train_dataloader()
        batch: Batch = loader.collate_fn(next(iter(loader.batch_sampler)))  # type: ignore[arg-type]
        batch = batch.to(pl_module.device)
        memory = self._memory(batch, pl_module.device)
        step, pair = self._timed(pl_module, batch, trainer.global_step)
        step *= trainer.accumulate_grad_batches
        steps = trainer.max_steps - trainer.global_step
        whole = duration(steps * step + self.evaluated * pair)
        parts = f"{steps} steps of {step:.3g} s, {duration(self.evaluated * pair)} of evaluation"
        say(f"about {whole} from here on ({parts}){memory}")

    def _memory(self, batch: Batch, device: torch.device) -> str:
        """The plan's sum, in words; empty for a model that no plan can be made for."""
        tokens, answers = batch.clean.shape[1], batch.answer.shape[1]
        bits = self.bench.subject.provenance.get("packed_bits")
        shape = step_shape(self.cfg, tokens, answers, len(self.bench.data.train), bits)
        try:
            need = sum(memory_parts(meta_copy(self.bench.subject), shape).values()) / 2**30
        except (ValueError, UserError):  # a compiled model, or borrowed attention
            return ""
        there = room(device) / 2**30
        text = f"{need:.2g} of {there:.3g} GiB of {'the GPU' if device.type == 'cuda' else 'memory'}"
        if need > there:
            say(f"this run needs about {text}; lower data.batch_size, or set mask.recompute=reads")
        return f"; {text}"

    def _timed(self, learner: MaskLearner, batch: Batch, step: int) -> tuple[float, float]:
        """Seconds of one micro-batch, forward and backward, and of one pair's forward."""
        seconds = 0.0
        for _ in range(2 if learner.device.type == "cuda" else 1):  # a GPU compiles and captures the first time
            begun = now()
            learner.rehearse(batch, step)
            seconds = now() - begun
        with torch.no_grad():
            reference, model = self.bench.references(batch), self.bench.model
            masks = scatter_edges(model.graph, torch.ones(1, model.graph.n_edges, device=learner.device))
            begun = now()
            model(masks, batch.clean, reference.ablated, batch.positions)
            return seconds, (now() - begun) / len(batch)
