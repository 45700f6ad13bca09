"""Frozen weights under DeepSpeed's ZeRO-3 and torch's fully_shard: the same numbers, in parts, let go of again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, tiny_batch, tiny_model
from test_sharded import CPU, Counted, in_two_processes, loss_and_gradient

from circuitlit.cli.ranks import free_port, join
from circuitlit.evaluate.cost.training import stock_step
from circuitlit.masked import MaskedModel
from circuitlit.masked.engines import Room, deepspeed_shard, fsdp_shard
from circuitlit.model import Subject
from circuitlit.model.weights import CheckpointWeights, empty_model

Shard = Callable[..., None]
ENGINES = {"deepspeed": deepspeed_shard, "fsdp": fsdp_shard}
every_engine = pytest.mark.parametrize("engine", ENGINES)


def together(work: Callable[[int], None], folder: Path) -> None:
    """In two processes that know their numbers as launched ones do."""
    common = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}

    def numbered(rank: int) -> None:
        os.environ |= common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        work(rank)

    in_two_processes(numbered, folder)


def rooms(model: MaskedModel) -> list[Room]:
    return [module for module in model.shards.rooms.modules() if isinstance(module, Room)]


def is_let_go(model: MaskedModel) -> bool:
    """Neither the engine nor the model holds gathered weights."""
    sizes = {p.untyped_storage().nbytes() // p.element_size() for p in model.parameters() if not p.requires_grad}
    parts = [getattr(room.flat, "ds_status", None) for room in rooms(model)]
    return sizes == {1} and all(part is None or part.name == "NOT_AVAILABLE" for part in parts)


def own_part(room: Room) -> torch.Tensor:
    return room.flat.ds_tensor if hasattr(room.flat, "ds_tensor") else room.flat.to_local()  # type: ignore


def same_numbers(rank: int, shard: Shard, names: Iterable[str]) -> None:
    for name in names:
        expected = loss_and_gradient(MaskedModel(Subject(tiny_model(name)), 2, True))
        model = MaskedModel(Subject(tiny_model(name)), 2, True)
        shard(model, CPU)
        assert 0.49 < model.shards.share < 0.55, name
        for _ in range(2):  # the second time what comes next is known
            for found, one in zip(loss_and_gradient(model), expected, strict=True):
                torch.testing.assert_close(found, one, rtol=1e-10, atol=1e-12)
            assert is_let_go(model)
        if rank == 1:  # what one process holds, the other needs
            own_part(rooms(model)[1]).zero_()
        assert not torch.allclose(loss_and_gradient(model)[0], expected[0])


@every_engine
def test_two_processes_compute_what_one_does(engine: str, tmp_path: Path) -> None:
    together(lambda rank: same_numbers(rank, ENGINES[engine], ("gpt2", "llama")), tmp_path)


@pytest.mark.slow
@every_engine
def test_in_every_architecture(engine: str, tmp_path: Path) -> None:
    together(lambda rank: same_numbers(rank, ENGINES[engine], CONFIGS), tmp_path)


def load_parts(shard: Shard, folder: Path, whole: torch.nn.Module) -> None:
    model = MaskedModel(Subject(empty_model(whole.config, torch.float64)), 2, True)
    source = Counted(CheckpointWeights(folder, model.subject.model))
    shard(model, CPU, source)
    assert sum(source.sizes) <= sum(p.numel() for p in whole.parameters()) / 2 + 16
    for ours, theirs in zip(
        loss_and_gradient(model), loss_and_gradient(MaskedModel(Subject(whole), 2, True)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    stock_step(model.subject, tiny_batch())
    assert is_let_go(model)


@every_engine
def test_a_process_reads_its_part_alone(engine: str, tmp_path: Path) -> None:
    whole = tiny_model("llama", num_hidden_layers=4)
    whole.save_pretrained(tmp_path / "model")
    together(lambda rank: load_parts(ENGINES[engine], tmp_path / "model", whole), tmp_path)


def gathers_of_a_step(shard: Shard) -> int:
    """The third time, when what comes next is known."""
    model = MaskedModel(Subject(tiny_model("llama", num_hidden_layers=6)), 2, True)
    shard(model, CPU)
    for _ in range(2):
        loss_and_gradient(model)  # of two batches
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        loss_and_gradient(model)
    return sum(event.name.startswith(("gloo:all_gather", "gloo:_all_gather")) for event in seen.events()) // 2


def three_times(shard: Shard) -> None:
    """For the references, the forward and the backward, where a recomputed panel stays; or less often."""
    pieces = 1 + 6 + 2
    assert pieces < gathers_of_a_step(shard) <= 3 * pieces


@pytest.mark.slow
@every_engine
def test_a_piece_is_gathered_at_most_three_times_in_a_step(engine: str, tmp_path: Path) -> None:
    together(lambda _: three_times(ENGINES[engine]), tmp_path)


@pytest.mark.gpu
@every_engine
@pytest.mark.parametrize("offload", [False, True])
def test_one_gpu_computes_what_it_does_without(engine: str, offload: bool) -> None:
    """On one card, by a group of one process."""
    device = torch.device("cuda")
    join(device, alone=True)
    expected = loss_and_gradient(MaskedModel(Subject(tiny_model("llama").to(device)), 2, True))
    model = MaskedModel(Subject(tiny_model("llama")), 2, True)
    ENGINES[engine](model, device, offload=offload)
    for _ in range(3):
        for found, one in zip(loss_and_gradient(model), expected, strict=True):
            torch.testing.assert_close(found, one, rtol=1e-8, atol=1e-10)
        assert is_let_go(model)
