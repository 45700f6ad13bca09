"""The order of the batches and the module that serves them."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, islice
from types import SimpleNamespace

import pytest
import torch

from circuitlit.errors import UserError
from circuitlit.tasks import Pair, Pairs, PairsModule, ioi
from circuitlit.tasks.pair import ALONE, LACKING
from circuitlit.tasks.sampler import MicroBatches, shard

LENGTHS = torch.randint(5, 40, (50,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize("by_length", [False, True])
def test_the_order_of_batches_is_a_function_of_the_step(by_length):
    def first(number: int, **options: int) -> list[list[int]]:
        return list(islice(MicroBatches(LENGTHS, batch_size=4, seed=7, by_length=by_length, **options), number))

    whole = first(60)
    assert whole[23:] == first(37, start=23)
    assert whole == first(60) != list(islice(MicroBatches(LENGTHS, 4, seed=8, by_length=by_length), 60))
    ranks = [first(30, rank=rank, world=2) for rank in (0, 1)]
    assert whole == [batch for both in zip(*ranks, strict=True) for batch in both]
    ranks = [first(30, rank=rank, world=2, accumulate=3) for rank in (0, 1)]
    assert whole[:12] == ranks[0][:3] + ranks[1][:3] + ranks[0][3:6] + ranks[1][3:6]
    assert all(len(batch) == 4 for batch in whole)


def test_every_pass_has_every_row_in_a_new_order():
    rows = [row for batch in islice(MicroBatches(LENGTHS, 5, seed=0), 20) for row in batch]
    assert sorted(rows[:50]) == sorted(rows[50:]) == list(range(50)) and rows[:50] != rows[50:]
    assert next(iter(MicroBatches([9, 9, 9], 8, seed=0)))[:3] != [0, 1, 2, 0, 1, 2, 0, 1]
    assert sorted(next(iter(MicroBatches([9, 9, 9], 6, seed=0)))) == [0, 0, 1, 1, 2, 2]


def test_grouping_by_length_keeps_the_rows_of_a_window_and_wastes_less():
    plain, grouped = (
        list(islice(MicroBatches(LENGTHS, 2, seed=0, by_length=by_length), 16)) for by_length in (False, True)
    )
    assert sorted(chain(*plain)) == sorted(chain(*grouped))
    waste = [sum(max(LENGTHS[i] for i in b) * 2 - sum(LENGTHS[i] for i in b) for b in bs) for bs in (plain, grouped)]
    assert waste[1] < 0.3 * waste[0]
    longest = [max(LENGTHS[i] for i in batch) for batch in grouped]
    assert longest != sorted(longest)


@pytest.mark.parametrize("n_rows, batch_size, world", [(200, 64, 1), (10, 4, 3), (9, 1, 2), (2, 8, 2), (13, 3, 4)])
def test_held_out_rows_are_on_one_rank_each_in_equally_many_batches(n_rows, batch_size, world):
    shards = [shard(n_rows, batch_size, rank, world) for rank in range(world)]
    assert len({len(batches) for batches in shards}) == 1
    assert [list(chain(*batches)) for batches in shards] == [list(range(rank, n_rows, world)) for rank in range(world)]
    assert max(len(batch) for batches in shards for batch in batches) <= batch_size + (batch_size == 1)
    assert min(len(batch) for batches in shards for batch in batches) >= 1


def module(byte_bpe, **options) -> PairsModule:
    return PairsModule(ioi(byte_bpe, 40, 10, 11, seed=0), byte_bpe, batch_size=4, seed=0, **options)


def test_the_module_serves_all_splits(byte_bpe):
    data = module(byte_bpe)
    loader = data.train_dataloader()
    with pytest.raises(TypeError):
        len(loader)
    batch = next(iter(loader))
    assert batch.clean.shape == (4, int(batch.lengths.max())) and len(set(batch.index.tolist())) == 4
    test = [i for batch in data.test_dataloader() for i in batch.index.tolist()]
    assert test == list(range(11)) and len(list(data.val_dataloader())) == 3
    data = module(byte_bpe, pad_to="max")
    assert {batch.clean.shape[1] for batch in data.test_dataloader()} == {max(data.test.lengths)}
    data.train = data.train.__class__(data.train.rows[:1], data.train.role_names)  # shorter than other splits' rows
    assert next(iter(data.train_dataloader())).clean.shape[1] == data.train.lengths[0]  # as cached references are


def test_a_batch_moves_in_one_copy(byte_bpe):
    batch = next(iter(module(byte_bpe).train_dataloader()))
    moved = batch.moved_at_once("cpu")
    for name, part in vars(batch).items():
        other = getattr(moved, name)
        assert torch.equal(part, other) and part.dtype == other.dtype and other.is_contiguous(), name
    assert not torch.equal(batch.clean, batch.corrupted)


def test_the_module_goes_on_at_the_trainers_step(byte_bpe):
    data = module(byte_bpe)
    whole = [batch.index.tolist() for batch in islice(data.train_dataloader(), 10)]
    trainer = SimpleNamespace(global_step=3, accumulate_grad_batches=2, global_rank=0, world_size=1)
    data.trainer = trainer  # pyright: ignore
    assert [batch.index.tolist() for batch in islice(data.train_dataloader(), 4)] == whole[6:]
    trainer.world_size, trainer.global_rank, trainer.global_step = 2, 1, 1
    assert [batch.index.tolist() for batch in islice(data.train_dataloader(), 2)] == whole[6:8]
    assert [i for batch in data.test_dataloader() for i in batch.index.tolist()] == [1, 3, 5, 7, 9]


def test_workers_serve_what_the_main_process_does(byte_bpe):
    loaders = [module(byte_bpe, num_workers=n).train_dataloader() for n in (0, 1)]
    a, b = ([batch.index.tolist() for batch in islice(loader, 5)] for loader in loaders)
    assert a == b


def test_the_module_refuses_settings_out_of_range(byte_bpe):
    with pytest.raises(UserError, match="pad_to=row"):
        module(byte_bpe, pad_to="row")
    with pytest.raises(UserError, match="batch_size=0"):
        PairsModule(Pairs("mine", [], [], []), byte_bpe, batch_size=0, seed=0)
    empty = PairsModule(Pairs("mine", [], [], [Pair("Mary and", "John and", " Tom")]), byte_bpe, batch_size=4, seed=0)
    assert empty.val_dataloader() == [] and len(list(empty.test_dataloader())) == 1
    with pytest.raises(UserError, match="task mine has no training pairs"):
        empty.train_dataloader()


def test_a_pair_knows_whether_others_of_its_task_have_a_wrong_answer(byte_bpe):
    """Its metric is the same whatever batch, and whatever split, it is in."""
    bare, compared = Pair("Mary and", "John and", " Tom"), Pair("Tom and", "John and", " Mary", " Tom")
    splits = {"train": [bare], "val": [], "test": [replace(bare, clean="Anna and"), compared]}
    for test, wrong in ((splits["test"], LACKING), (splits["test"][:1], ALONE)):
        data = PairsModule(Pairs("mine", **{**splits, "test": test}), byte_bpe, batch_size=4, seed=0)
        assert [data.train.rows[0].wrong, data.test.rows[0].wrong] == [wrong, wrong]
    assert data.test.collate([0]).wrong.tolist() == [ALONE]
