"""Frozen weights under ZeRO-3, fully_shard or a block at a time: the same numbers, in parts, let go of again."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cli import settings
from conftest import CONFIGS, tiny_batch, tiny_model
from hydra import compose, initialize_config_dir

from circuitlit.cli.build import attribute, build_subject, build_workbench
from circuitlit.cli.ranks import free_port, join
from circuitlit.discover import MaskedLoss
from circuitlit.errors import UserError
from circuitlit.evaluate.cost.training import stock_step
from circuitlit.graph import MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.masked.engines import Room, deepspeed_shard, fsdp_shard
from circuitlit.masked.one_block import OwnRoom, one_block
from circuitlit.model import Subject
from circuitlit.model.weights import CheckpointWeights, RandomWeights, empty_model
from circuitlit.objective import kl_divergence

Shard = Callable[..., None]
ENGINES = {"deepspeed": deepspeed_shard, "fsdp": fsdp_shard}
every_engine = pytest.mark.parametrize("engine", ENGINES)
CPU = torch.device("cpu")
BOTH = ("gpt2", "llama")
CONF = Path(__file__).parent.parent / "conf"


def in_two_processes(work: Callable[[int], None], folder: Path) -> None:
    """Call `work(rank)` in two forked processes that have met; an error in one is raised here."""
    mp.start_processes(_meet, (work, folder), nprocs=2, start_method="fork")
    errors = [file.read_text() for file in sorted(folder.glob("error_*"))]
    assert not errors, errors[0]


def _meet(rank: int, work: Callable[[int], None], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        work(rank)
    except Exception:
        (folder / f"error_{rank}").write_text(traceback.format_exc())
        raise
    dist.destroy_process_group()


def loss_and_gradient(model: MaskedModel) -> list[torch.Tensor]:
    """Of two batches, one after the other, under masks between 0 and 1."""
    subject, found = model.subject, []
    loss = MaskedLoss(model, MaskLayout(subject.graph), kl_divergence)
    references = References(subject, "interchange")
    for number in range(2):
        batch = tiny_batch(seed=number).to(subject.device)
        draw = torch.Generator().manual_seed(number)
        masks = torch.rand(subject.graph.n_edges, generator=draw, dtype=torch.float64).to(subject.device)
        masks.requires_grad_()
        value = loss(masks, batch, references(batch))
        found += [value.detach(), *torch.autograd.grad(value, masks)]
    return found


def stock_gradient(model: MaskedModel) -> torch.Tensor:
    """Whatever runs a stock block backward has its weights, too."""
    stream = torch.rand(2, 5, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    value = model.subject.model(inputs_embeds=stream, use_cache=False).logits.square().mean()
    return torch.autograd.grad(value, stream)[0]


class Counted:
    """A source that counts what it reads."""

    def __init__(self, source: CheckpointWeights) -> None:
        self.source, self.sizes = source, []

    def read(self, names, shape, start, stop) -> torch.Tensor:
        self.sizes.append(stop - start)
        return self.source.read(names, shape, start, stop)


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
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                ours = loss_and_gradient(model)
            assert not any("view" in str(warning.message) for warning in told)  # fully_shard's, once a step
            for found, one in zip(ours, expected, strict=True):
                torch.testing.assert_close(found, one, rtol=1e-10, atol=1e-12)
            assert is_let_go(model)
        if name in BOTH:
            plain = stock_gradient(MaskedModel(Subject(tiny_model(name)), 2, True))
            torch.testing.assert_close(stock_gradient(model), plain, rtol=1e-12, atol=1e-12)
        if rank == 1:  # what one process holds, the other needs
            own_part(rooms(model)[1]).zero_()
        assert not torch.allclose(loss_and_gradient(model)[0], expected[0])


@pytest.mark.long
@every_engine
def test_two_processes_compute_what_one_does(engine: str, tmp_path: Path) -> None:
    together(lambda rank: same_numbers(rank, ENGINES[engine], BOTH), tmp_path)


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


def shared_scores(local: Path, rank: int, sharded: bool) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    strategy = "fsdp" if sharded else "ddp"
    given = [*settings(local, local / "unused"), f"strategy={strategy}", "trainer.accelerator=cpu", "data.batch_size=3"]
    for method in ("mask_gradients",) if sharded else ("mask_gradients", "eap_ig"):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("attribute", [*given, f"method={method}"])
        bench = build_workbench(cfg, build_subject(cfg))
        ours, alone = (attribute(cfg, bench, shared=shared).values for shared in (True, False))
        torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-6)
        assert not torch.equal(ours, torch.zeros_like(ours))


@pytest.mark.long
@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_share_the_pairs_of_an_attribution(sharded: bool, local: Path, tmp_path: Path) -> None:
    in_two_processes(lambda rank: shared_scores(local, rank, sharded), tmp_path)


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """A tiny Llama of six layers in several files."""
    model = tiny_model("llama", num_hidden_layers=6)
    model.save_pretrained(tmp_path / "model", max_shard_size="30KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 3
    return tmp_path / "model", model


def test_one_process_has_a_block_at_a_time(
    checkpoint: tuple[Path, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a backward pass the blocks that are recomputed together."""
    folder, whole = checkpoint
    model = MaskedModel(Subject(empty_model(whole.config, torch.float64)), 2, True)
    assert all(p.is_meta for p in model.subject.model.parameters())
    one_block(model, CPU, CheckpointWeights(folder, model.subject.model), offload=True)
    block = sum(p.nbytes for p in whole.model.layers[0].parameters())
    most, hold = [0], OwnRoom.hold

    def counted(room: OwnRoom) -> None:
        hold(room)
        most[0] = max(most[0], sum(own._whole.untyped_storage().nbytes() for own in rooms(model)))

    monkeypatch.setattr(OwnRoom, "hold", counted)
    plain = MaskedModel(Subject(whole), 2, True)
    for ours, theirs in zip(loss_and_gradient(model), loss_and_gradient(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert block < most[0] <= 2 * block and nothing_is_held(model)


def nothing_is_held(model: MaskedModel) -> bool:
    return not any(p.untyped_storage().nbytes() for p in model.parameters() if not p.requires_grad)


def same_one_by_one(names: Iterable[str], offload: bool) -> None:
    for name in names:
        plain, model = (MaskedModel(Subject(tiny_model(name)), 2, True) for _ in range(2))
        one_block(model, CPU, offload=offload)
        for _ in range(2):
            for ours, theirs in zip(loss_and_gradient(model), loss_and_gradient(plain), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
        if name in BOTH:
            assert torch.equal(stock_gradient(model), stock_gradient(plain))
        assert nothing_is_held(model) == offload and model.shards.share == 1


@pytest.mark.parametrize("offload", [False, True])
def test_one_process_computes_what_it_does_without(offload: bool) -> None:
    same_one_by_one(BOTH, offload)


@pytest.mark.slow
def test_a_block_at_a_time_in_every_architecture() -> None:
    same_one_by_one(CONFIGS, offload=True)


def test_files_that_do_not_fit_get_one_sentence(checkpoint: tuple[Path, torch.nn.Module]) -> None:
    folder, _ = checkpoint
    other = tiny_model("llama", num_hidden_layers=7).config
    for config, words in (
        (other, "no weights for model.layers.6"),
        (tiny_model("llama", vocab_size=60).config, "has the shape"),
    ):
        with pytest.raises(UserError, match=words):
            model = MaskedModel(Subject(empty_model(config, torch.float32)), 2, True)
            one_block(model, CPU, CheckpointWeights(folder, model.subject.model))
    with pytest.raises(UserError, match="holds no safetensors file"):
        CheckpointWeights(folder / "nowhere", empty_model(other, torch.float32))


def test_a_checkpoint_of_the_body_alone_and_tied_weights(tmp_path: Path) -> None:
    """As the hub's GPT-2 is stored: no prefix, no output weights, float32."""
    whole = tiny_model("gpt2").float().eval()
    whole.transformer.save_pretrained(tmp_path)
    model = MaskedModel(Subject(empty_model(whole.config, torch.float32)), 2, True)
    one_block(model, CPU, CheckpointWeights(tmp_path, model.subject.model), offload=True)
    ids = tiny_batch().clean
    with torch.no_grad():
        assert torch.equal(model.subject.model(ids).logits, whole(ids).logits)


def test_random_weights_have_the_size_of_real_ones() -> None:
    config = tiny_model("llama").config
    model = MaskedModel(Subject(empty_model(config, torch.float32)), 2, True)
    one_block(model, CPU, RandomWeights(0, CPU, torch.float32), offload=True)
    rooms(model)[1].hold()
    block = model.subject.model.model.layers[0]
    assert torch.equal(block.input_layernorm.weight, torch.ones(24))
    assert float(block.mlp.up_proj.weight.std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", [*ENGINES, "one_block"])
@pytest.mark.parametrize("offload", [False, True])
def test_one_gpu_computes_what_it_does_without(engine: str, offload: bool) -> None:
    """On one card, by a group of one process."""
    device = torch.device("cuda")
    join(device, alone=True)
    expected = loss_and_gradient(MaskedModel(Subject(tiny_model("llama").to(device)), 2, True))
    model = MaskedModel(Subject(tiny_model("llama")), 2, True)
    (ENGINES | {"one_block": one_block})[engine](model, device, offload=offload)
    for _ in range(3):
        for found, one in zip(loss_and_gradient(model), expected, strict=True):
            torch.testing.assert_close(found, one, rtol=1e-8, atol=1e-10)
        assert nothing_is_held(model) == offload if engine == "one_block" else is_let_go(model)
