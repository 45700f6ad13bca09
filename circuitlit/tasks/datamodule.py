"""The pairs of a task as Lightning's dataloaders."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import partial

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from circuitlit.arguments import checks_arguments
from circuitlit.errors import UserError
from circuitlit.tasks.encode import encode, marked
from circuitlit.tasks.encoded import EncodedPairs, Row
from circuitlit.tasks.faults import BadRows
from circuitlit.tasks.pair import Batch
from circuitlit.tasks.sampler import MicroBatches, shard
from circuitlit.tasks.splits import SPLITS, Pairs

PADDINGS = ("batch", "bucket", "max")
BUCKET = 8  # tokens


class _RowNumbers(Dataset[int]):
    """The numbers 0 to n - 1: workers get these, `collate` looks the rows up."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows

    def __len__(self) -> int:
        return self.n_rows

    def __getitem__(self, index: int) -> int:
        return index


def _encoded(splits: Pairs, tokenizer: PreTrainedTokenizerBase) -> list[EncodedPairs]:
    """All splits; what is wrong with pairs of any of them is said together."""
    made, faults = [], []
    for name in SPLITS:
        try:
            made.append(encode(getattr(splits, name), tokenizer, splits.role_names))
        except BadRows as error:
            faults += error.faults
    if faults:
        raise BadRows(faults, sum(len(getattr(splits, name)) for name in SPLITS))
    return marked(made)


class PairsModule(LightningDataModule):
    """Encoded splits and their dataloaders.

    The loaders shard their rows over ranks themselves: give the Trainer `use_distributed_sampler=False`. Training
    batches never end: give it `max_steps`. Training resumes at `trainer.global_step` optimizer steps.

    Attributes:
        splits: the pairs as texts.
        train: encoded training pairs.
        val: encoded validation pairs.
        test: encoded test pairs.
        new_words: encoded pairs of the test split's sentences with new words; may be empty.
        batch_size, eval_batch_size: pairs in a batch of training and of an evaluation.
        pads_to_longest: True where every training batch has the length of the longest pair.
    """

    @checks_arguments
    def __init__(
        self,
        splits: Pairs,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        seed: int,
        pad_to: str = "batch",
        num_workers: int = 0,
        eval_batch_size: int | None = None,
    ) -> None:
        """Encode and check all splits.

        Args:
            splits: what a task built.
            tokenizer: the model's.
            batch_size: pairs in each micro-batch of each rank.
            seed: of the order of the training pairs.
            pad_to: "batch" groups training pairs of similar length and pads to a batch's longest; "bucket" then rounds
                up to a multiple of 8 tokens, so that a captured step has few shapes; "max" pads every batch to the
                longest row of its split, which gives it one.
            num_workers: processes that collate; 0 does it in the main one.
            eval_batch_size: pairs in each batch of an evaluation; None takes `batch_size`.

        Raises:
            UserError: a pair that cannot be encoded, or a setting out of range.
        """
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} is below 1; raise it")
        if pad_to not in PADDINGS:
            raise UserError(f"pad_to={pad_to} is not one of {', '.join(PADDINGS)}")
        self.splits = splits
        self.train, self.val, self.test, self.new_words = _encoded(splits, tokenizer)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self._seed, self._num_workers = seed, num_workers
        self.pads_to_longest = pad_to == "max"
        self._multiple = BUCKET if pad_to == "bucket" else 1

    def __repr__(self) -> str:
        return f"PairsModule({self.splits!r})"

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copy without waiting for the GPU."""
        return batch.to(device, non_blocking=device.type == "cuda")

    @property
    def to_choose_on(self) -> EncodedPairs:
        """The validation pairs, or the training pairs where there are none."""
        return self.val if len(self.val) else self.train

    def with_seed(self, seed: int) -> PairsModule:
        """The same pairs, the training ones in another order."""
        other = copy(self)
        other._seed = seed
        return other

    def with_train(self, rows: Sequence[int]) -> PairsModule:
        """The same held-out pairs, and of the training pairs those of these numbers alone."""
        other = copy(self)
        other.train = self.train.some(rows)
        other.splits = replace(self.splits, train=[self.splits.train[row] for row in rows])
        return other

    def with_more(self, rows: Sequence[Row]) -> PairsModule:
        """The same pairs, and behind the training ones as many again, each a changed one of them; texts stay."""
        other, train = copy(self), self.train
        groups = train.groups or tuple(range(len(train)))
        other.train = EncodedPairs([*train.rows, *rows], train.role_names, 2 * groups)
        other.splits = replace(self.splits, train=2 * self.splits.train)
        return other

    def train_dataloader(self) -> DataLoader[int]:
        """Endless micro-batches of this rank, from the trainer's step on.

        Raises:
            UserError: the task has no training pairs.
        """
        if not len(self.train):
            raise UserError(f"task {self.splits.name} has no training pairs; give it some")
        trainer = self.trainer
        accumulate = trainer.accumulate_grad_batches if trainer else 1
        batches = MicroBatches(
            lengths=self.train.lengths,
            batch_size=self.batch_size,
            seed=self._seed,
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
            accumulate=accumulate,
            start=trainer.global_step * accumulate if trainer else 0,
            by_length=not self.pads_to_longest,
        )
        return self._loader(self.train, batches)

    def val_dataloader(self) -> DataLoader[int] | list[DataLoader[int]]:
        """All validation pairs in order, rows `rank::world` on each rank; an empty list without any."""
        return self._loader(self.val, self._shard(self.val)) if len(self.val) else []

    def test_dataloader(self) -> DataLoader[int] | list[DataLoader[int]]:
        """All test pairs in order, rows `rank::world` on each rank; an empty list without any."""
        return self._loader(self.test, self._shard(self.test)) if len(self.test) else []

    def _shard(self, encoded: EncodedPairs) -> list[list[int]]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if len(encoded) < world:
            raise UserError(
                f"task {self.splits.name} has {len(encoded)} pairs in a held-out split for {world} processes; "
                "raise n_val and n_test or use fewer devices"
            )
        return shard(len(encoded), self.batch_size, rank, world)

    def _loader(self, encoded: EncodedPairs, batches: MicroBatches | list[list[int]]) -> DataLoader[int]:
        pad_to = max(encoded.lengths) if self.pads_to_longest else None
        return DataLoader(
            _RowNumbers(len(encoded)),
            batch_sampler=batches,
            collate_fn=partial(encoded.collate, pad_to=pad_to, multiple=self._multiple),
            num_workers=self._num_workers,
            generator=torch.Generator().manual_seed(self._seed),  # or it would draw from everybody's
        )
