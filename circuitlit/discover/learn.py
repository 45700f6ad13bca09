"""Mask learning as a LightningModule: the circuit is what is left when the model is trained to do without its edges."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from lightning import LightningModule
from torch import Tensor, nn

from circuitlit.discover.gates import Gates, HardConcrete, Measure, Sampler, logistic_noise
from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.discover.overflow import Overflow
from circuitlit.discover.schedule import Schedule
from circuitlit.errors import UserError
from circuitlit.graph import EdgeScores
from circuitlit.masked import References
from circuitlit.tasks.pair import Batch

HARD_WIDTH = 0.4  # noise scale whose slope the gradient of hard steps has


class MaskLearner(LightningModule):
    """Trains one log-alpha per mask of a frozen model.

    The expected share of open gates is held exactly on its schedule: before each step all log-alphas are shifted by one
    scalar. The frozen model is no submodule: checkpoints hold the log-alphas alone.

    Args:
        loss: the objective under masks.
        references: teacher and ablated writers.
        initial: log-alphas to start from.
        target: share of edges to be cut at the end.
        schedule: how the run goes.
        gates: the gates' family.
        seed: of the gates' noise.
        constraint_gradient: True lets the gradient see that opening one gate closes the others a little.

    Attributes:
        masters: gives the copies of the log-alphas that a strategy trains in their place (DeepSpeed's partitions); the
            constraint's shift must reach these, too.
        noted: the last step's loss and sparsity, under the names by which loggers know them.
        overflow: what of the gradients was left out.
    """

    log_alpha: Tensor

    def __init__(
        self,
        loss: MaskedLoss,
        references: References,
        initial: Float[Tensor, "mask"],
        target: float,
        schedule: Schedule,
        gates: Gates | None = None,
        seed: int = 0,
        constraint_gradient: bool = False,
    ) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(initial.float().clone())
        self.loss, self.references = loss, references
        self.target, self.schedule, self.seed = target, schedule, seed
        self.gates: Gates = gates or HardConcrete()
        self.constraint_gradient = constraint_gradient
        self.masters: Callable[[], Iterable[Tensor]] = tuple
        self.beside, self._beside_lr = nn.ParameterList(), 0.0
        self.noted: dict[str, Tensor] = {}
        self.overflow = Overflow([self.log_alpha])
        self._micro_batch = (-1, 0)
        self._shifted = -1

    def train_beside(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        """Train some of the model's parameters, its adapters, with the masks; their rate follows the same schedule."""
        self.beside, self._beside_lr = nn.ParameterList(parameters), lr

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what a resumed run must agree on."""
        checkpoint["circuitlit"] = self._identity()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another run, and go on with another number of processes.

        Raises:
            UserError: it is not of this model, length or seed.
        """
        ours, theirs = self._identity(), checkpoint.get("circuitlit")
        if theirs != ours:
            raise UserError(f"ckpt_path holds a run of {theirs}, this one is {ours}; resume with the settings it had")
        loops = checkpoint["loops"]["fit_loop"]
        batches = loops["epoch_loop.batch_progress"]
        done = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        for counts in (batches["total"], batches["current"]):
            counts.update(dict.fromkeys(counts, done))
        # what loggers count by: saved a step early, and with these counts Lightning does not make up for it
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"]

    def _identity(self) -> dict[str, int]:
        """What a glance tells; `run` keeps all settings that training depends on beside it."""
        return {"masks": self.log_alpha.numel(), "steps": self.schedule.steps, "seed": self.seed}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One micro-batch: sample the gates, run the masked model, compare."""
        step = self.global_step
        loss = self.masked_loss(batch, step, self._position(step))
        sparsity = 1 - self.schedule.open_share(step, self.target, self.seed)
        self.noted = {"train/loss": self._over_ranks(loss.detach()), "train/sparsity": torch.tensor(sparsity)}
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log what was noted in steps that loggers write: Lightning takes a third of a small step for it."""
        if self.trainer._logger_connector.should_update_logs:
            for name, value in self.noted.items():
                self.log(name, value, batch_size=len(batch))

    def on_fit_end(self) -> None:
        """Say what of the gradients was left out."""
        self.overflow.tell()

    def _over_ranks(self, value: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The mean over all processes. `sync_dist=True` would make every step wait for the GPU, in a barrier."""
        if self.trainer.world_size == 1:
            return value
        total = value / self.trainer.world_size
        dist.all_reduce(total)
        return total

    def masked_loss(self, batch: Batch, step: int, micro_batch: int) -> Float[Tensor, ""]:
        """Loss of one micro-batch under freshly sampled gates, after the constraint is set to the step's target."""
        if self._shifted != step:  # once a step: a second shift would add rounding that other ranks do not have
            self._shifted = step
            with torch.no_grad():
                shift = self._shift(step)
                for values in (self.log_alpha, *self.masters()):
                    values += shift
        sampler, inputs = self._sampler(step, micro_batch)
        return self.loss(self.log_alpha, batch, self.references(batch), sampler, inputs)

    @torch.no_grad()
    def trained_masks(self) -> Float[Tensor, "copies edge"]:
        """Masks of all edges as the next step would draw them, under the last step's schedule.

        After hard steps they are the circuit that is cut; else they hold what noise and softness were left.
        """
        step = self._shifted if self._shifted >= 0 else self.schedule.steps - 1
        sampler, inputs = self._sampler(step, 0)
        return self.loss.layout.edges(sampler(self.log_alpha + self._shift(step), *inputs))

    def _shift(self, step: int) -> Float[Tensor, ""]:
        """What holds the constraint at a step, added to all log-alphas."""
        share = self.schedule.open_share(step, self.target, self.seed)
        if self.schedule.is_hard(step):  # with one edge at least, as the cut has
            return self.gates.shift_to_cut(self.log_alpha, max(share, 1 / self.log_alpha.numel()), self._measure)
        return self.gates.shift_to(self.log_alpha, share, self.schedule.noise(step), self._measure)

    def _sampler(self, step: int, micro_batch: int) -> tuple[Sampler, tuple[Tensor, Tensor]]:
        """How a step makes masks of log-alphas, with its noise and the noise's scale."""
        hard = self.schedule.is_hard(step)
        noise = logistic_noise(self.log_alpha.numel(), self.seed, step, micro_batch, self.device)
        scale = torch.tensor(HARD_WIDTH if hard else self.schedule.noise(step))
        sampler = Sampler(self.gates, self.constraint_gradient, self._measure, hard)
        return sampler, (noise, scale.to(self.device, non_blocking=True))

    def rehearse(self, batch: Batch, step: int) -> None:
        """Forward and backward of a micro-batch that leave everything as it was: to see how long that takes."""
        held = [(values, values.detach().clone()) for values in (self.log_alpha, *self.masters())]
        shifted, trained = self._shifted, [self.log_alpha, *self.beside]
        torch.autograd.grad(self.masked_loss(batch, step, 0), trained, allow_unused=True)
        self._shifted = shifted
        with torch.no_grad():
            for values, before in held:
                values.copy_(before)

    @property
    def _measure(self) -> Measure:
        """From the gates' probabilities to the share of edges kept."""
        return torch.mean if self.loss.layout.sites == "edges" else self.loss.layout.share

    def _position(self, step: int) -> int:
        """Place of this micro-batch among all of its step, over all ranks."""
        last, count = self._micro_batch
        count = count + 1 if last == step else 0
        self._micro_batch = (step, count)
        return self.global_rank * self.trainer.accumulate_grad_batches + count

    def configure_optimizers(self) -> Any:
        """Adam on log-alphas, without weight decay (which would pull needed edges to undecided), and on adapters."""
        groups: list[dict[str, Any]] = [{"params": [self.log_alpha], "lr": self.schedule.lr}]
        if len(self.beside):
            groups.append({"params": list(self.beside), "lr": self._beside_lr})
        optimizer = torch.optim.Adam(groups, fused=self.log_alpha.is_cuda or None)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule.lr_factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def scores(self) -> EdgeScores:
        """The log-alphas as edge scores; with node masks the lesser of an edge's and its writer's."""
        layout = self.loss.layout
        values = layout.weakest(self.log_alpha.detach().cpu()).clone()
        details: dict[str, object] = {"steps": self.schedule.steps, "target": self.target, "sites": layout.sites}
        return self.gates.scores(layout, values, self.gates.name, details)
