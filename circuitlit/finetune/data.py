"""Examples as Lightning's dataloaders, in an order that a resumed run goes on with."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from circuitlit.errors import UserError
from circuitlit.finetune.examples import Examples
from circuitlit.tasks.sampler import MicroBatches


class TuningData(LightningDataModule):
    """The training split as endless micro-batches from the trainer's step on; held-out splits as they are.

    Attributes:
        train, val, test: the splits.
    """

    def __init__(self, examples: dict[str, Examples], batch_size: int, seed: int) -> None:
        """Check what there is.

        Args:
            examples: of `examples_of_task` or `examples_of_file`.
            batch_size: examples in each micro-batch of each rank.
            seed: of their order.

        Raises:
            UserError: no training or no test examples, or a batch size below 1.
        """
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size={batch_size} is below 1; raise it")
        if absent := {"train", "val", "test"} - set(examples):
            raise UserError(f"the examples have no split {sorted(absent)[0]}; give one, which may be empty for val")
        self.train, self.val, self.test = (examples[name] for name in ("train", "val", "test"))
        for name in ("train", "test"):
            if not len(getattr(self, name)):
                raise UserError(f"there are no {name} examples to tune on; raise task.build.n_{name}")
        self._batch_size, self._seed = batch_size, seed

    def train_dataloader(self) -> DataLoader[int]:
        """Endless micro-batches of this rank."""
        trainer = self.trainer
        accumulate = trainer.accumulate_grad_batches if trainer else 1
        batches = MicroBatches(
            lengths=self.train.chosen.lengths,
            batch_size=self._batch_size,
            seed=self._seed,
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
            accumulate=accumulate,
            start=trainer.global_step * accumulate if trainer else 0,
            by_length=True,
        )
        rows = range(len(self.train))
        return DataLoader(rows, batch_sampler=batches, collate_fn=self.train.collate)  # type: ignore[arg-type]
