"""Weights shared out over two processes (gloo): the same numbers, about half the memory, read from files piecewise."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cli import settings
from conftest import CONFIGS, tiny_batch, tiny_model
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM

from circuitlit.cli.build import attribute, build_subject, build_workbench
from circuitlit.discover import MaskedLoss
from circuitlit.errors import UserError
from circuitlit.evaluate.cost.training import stock_step
from circuitlit.graph import MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.masked.sharded import Unit, shard
from circuitlit.model import Subject
from circuitlit.model.weights import CheckpointWeights, RandomWeights, empty_model
from circuitlit.objective import kl_divergence

CPU = torch.device("cpu")
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


def same_numbers(names: Iterable[str]) -> None:
    for name in names:
        expected = loss_and_gradient(MaskedModel(Subject(tiny_model(name)), 2, True))
        model = MaskedModel(Subject(tiny_model(name)), 2, True)
        shard(model, CPU)
        for found, one in zip(loss_and_gradient(model), expected, strict=True):
            torch.testing.assert_close(found, one, rtol=1e-10, atol=1e-12)
        assert 0.49 < model.shards.share < 0.55, name


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    in_two_processes(lambda _: same_numbers(("gpt2", "llama")), tmp_path)


@pytest.mark.slow
def test_in_every_architecture(tmp_path: Path) -> None:
    in_two_processes(lambda _: same_numbers(CONFIGS), tmp_path)


def shared_scores(local: Path, rank: int, sharded: bool) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    strategy = "sharded" if sharded else "ddp"
    given = [*settings(local, local / "unused"), f"strategy={strategy}", "trainer.accelerator=cpu", "data.batch_size=3"]
    for method in ("mask_gradients",) if sharded else ("mask_gradients", "eap_ig"):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("attribute", [*given, f"method={method}"])
        bench = build_workbench(cfg, build_subject(cfg))
        ours, alone = (attribute(cfg, bench, shared=shared).values for shared in (True, False))
        torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-6)
        assert not torch.equal(ours, torch.zeros_like(ours))


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_share_the_pairs_of_an_attribution(sharded: bool, local: Path, tmp_path: Path) -> None:
    in_two_processes(lambda rank: shared_scores(local, rank, sharded), tmp_path)


def stock_gradients(rank: int) -> None:
    """Whatever runs a stock block backward has its weights, too."""
    found = []
    for sharded in (False, True):
        model = MaskedModel(Subject(tiny_model("llama")), 2, True)
        if sharded:
            shard(model, CPU)
        embedded: list[torch.Tensor] = []
        hook = model.subject.embed.register_forward_hook(lambda _m, _a, out: out.detach())
        stream = model.subject.embed(tiny_batch().clean).requires_grad_()
        embedded.append(stream)
        value = model.subject.model(inputs_embeds=stream, use_cache=False).logits.square().mean()
        found.append(torch.autograd.grad(value, stream)[0])
        hook.remove()
        stock_step(model.subject, tiny_batch())
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


def test_the_stock_model_can_be_differentiated(tmp_path: Path) -> None:
    in_two_processes(stock_gradients, tmp_path)


class Counted:
    """A source that counts what it reads."""

    def __init__(self, source: CheckpointWeights) -> None:
        self.source, self.sizes = source, []

    def read(self, names, shape, start, stop) -> torch.Tensor:
        self.sizes.append(stop - start)
        return self.source.read(names, shape, start, stop)


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """A tiny Llama of six layers in several files."""
    model = tiny_model("llama", num_hidden_layers=6)
    model.save_pretrained(tmp_path / "model", max_shard_size="30KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 3
    return tmp_path / "model", model


def test_a_process_reads_and_holds_its_share(checkpoint: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    folder, whole = checkpoint
    in_two_processes(lambda rank: load_share(folder, whole), tmp_path)


def load_share(folder: Path, whole: torch.nn.Module) -> None:
    total = sum(p.numel() for p in whole.parameters())
    block = sum(p.numel() for p in whole.model.layers[0].parameters())
    model = MaskedModel(Subject(empty_model(whole.config, torch.float64)), 2, True)
    assert all(p.is_meta for p in model.subject.model.parameters())
    held, most = [0], [0]
    gather, release = Unit.gather, Unit.release

    def counted_gather(unit: Unit) -> None:
        held[0] += unit.total
        most[0] = max(most[0], held[0])
        gather(unit)

    def counted_release(unit: Unit) -> None:
        held[0] -= unit.total if unit._room.nbytes() else 0
        release(unit)

    source = Counted(CheckpointWeights(folder, model.subject.model))
    shard(model, CPU, source)
    Unit.gather, Unit.release = counted_gather, counted_release
    assert sum(source.sizes) <= total / 2 + 8 * 128 and max(source.sizes) <= block / 2 + 128
    assert model.shards.share < 0.53
    found = loss_and_gradient(model)
    assert most[0] <= 3 * block  # a panel of two, and the next one
    for ours, theirs in zip(found, loss_and_gradient(MaskedModel(Subject(whole), 2, True)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_one_process_keeps_its_weights_in_the_host() -> None:
    expected = loss_and_gradient(MaskedModel(Subject(tiny_model("gpt2")), 2, True))
    model = MaskedModel(Subject(tiny_model("gpt2")), 2, True)
    shard(model, CPU, offload=True)
    assert model.shards.share < 1.1
    for ours, theirs in zip(loss_and_gradient(model), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_files_that_do_not_fit_get_one_sentence(checkpoint: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    folder, _ = checkpoint
    other = tiny_model("llama", num_hidden_layers=7).config
    for config, words in (
        (other, "no weights for model.layers.6"),
        (tiny_model("llama", vocab_size=60).config, "has the shape"),
    ):
        with pytest.raises(UserError, match=words):
            model = MaskedModel(Subject(empty_model(config, torch.float32)), 2, True)
            shard(model, CPU, CheckpointWeights(folder, model.subject.model))
    with pytest.raises(UserError, match="holds no safetensors file"):
        CheckpointWeights(tmp_path / "meeting", empty_model(other, torch.float32))


def test_a_checkpoint_of_the_body_alone_and_tied_weights(tmp_path: Path) -> None:
    """As the hub's GPT-2 is stored: no prefix, no output weights, float32."""
    whole = tiny_model("gpt2").float().eval()
    whole.transformer.save_pretrained(tmp_path)
    model = MaskedModel(Subject(empty_model(whole.config, torch.float32)), 2, True)
    shard(model, CPU, CheckpointWeights(tmp_path, model.subject.model), offload=True)
    ids = tiny_batch().clean
    with torch.no_grad():
        assert torch.equal(model.subject.model(ids).logits, whole(ids).logits)


def test_random_weights_have_the_size_of_real_ones() -> None:
    config = AutoModelForCausalLM.from_config(tiny_model("llama").config).config
    model = MaskedModel(Subject(empty_model(config, torch.float32)), 2, True)
    shard(model, CPU, RandomWeights(0, CPU, torch.float32), offload=True)
    model.shards.enter(1)
    block = model.subject.model.model.layers[0]
    assert torch.equal(block.input_layernorm.weight, torch.ones(24))
    assert float(block.mlp.up_proj.weight.std()) == pytest.approx(0.02, rel=0.1)
