"""Heads: patterns against the stock eager attention, path patching against hooks."""

from __future__ import annotations

import pytest
import torch
from conftest import CONFIGS, tiny_batch, tiny_model
from path_patching import patched_logits

from circuitlit.errors import UserError
from circuitlit.evaluate.statistics import ratio_estimate
from circuitlit.heads import (
    Heads,
    PatchBed,
    path_effects,
    path_patch,
)
from circuitlit.heads.attention import run_streams
from circuitlit.heads.effects import head_reader, head_writers
from circuitlit.heads.knowledge import carrying, token_places
from circuitlit.heads.path_patching import path_patch_logits
from circuitlit.heads.tail import run_tail
from circuitlit.masked import run_writers
from circuitlit.model import Subject
from circuitlit.objective import task_metric

PLAIN = [name for name in CONFIGS if not name.startswith("gemma")]
ARCHITECTURES = ["gpt2", "gpt_neox", "llama", "qwen3"]


def test_heads_behind_a_norm_are_refused() -> None:
    with pytest.raises(UserError, match="behind the attention"):
        Heads(Subject(tiny_model("gemma2")))


@pytest.mark.parametrize("name", PLAIN)
def test_patterns_are_those_of_the_stock_eager_attention(name: str) -> None:
    subject = Subject(tiny_model(name))
    ids = tiny_batch().clean
    subject.model.set_attn_implementation("eager")
    expected = subject.model(ids, output_attentions=True).attentions
    for layer, pattern in enumerate(Heads(subject).patterns(ids)):
        torch.testing.assert_close(pattern, expected[layer].double(), atol=1e-6, rtol=0)  # eager softmax is float32
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))


@pytest.mark.parametrize("name", PLAIN)
def test_the_tail_from_any_block_is_the_stock_forward(name: str) -> None:
    heads = Heads(Subject(tiny_model(name)))
    streams = run_streams(heads.subject, tiny_batch().clean)
    for first, stream in enumerate(streams):
        torch.testing.assert_close(run_tail(heads, first, stream), streams[-1], atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_what_is_put_in_at_some_tokens_is_put_in_by_hooks(name: str) -> None:
    """A head's result and an MLP's output are others at some tokens alone, also where an earlier one changed them."""
    subject, batch = Subject(tiny_model(name)), tiny_batch(answers=1)
    bed, names = PatchBed.build(subject, [batch]), ("other", "subject", "end")
    where = token_places(batch, names, "subject")
    assert 0 < int(where.sum()) < where.numel() - len(batch)
    chosen = [(0, 1), (1, -1), (2, 0), (0, -1)]
    other = run_writers(subject, batch.corrupted)
    anatomy, width = subject.anatomy, subject.graph.n_heads

    def put_head(layer: int, head: int):
        def hook(_module: torch.nn.Module, args: tuple) -> tuple:
            split = args[0].unflatten(-1, (width, -1)).clone()
            split[:, :, head][where] = other.heads[:, layer].unflatten(-1, (width, -1))[:, :, head][where]
            return (split.flatten(-2), *args[1:])

        return hook

    def put_mlp(layer: int):
        def hook(_module: torch.nn.Module, _args: tuple, out: torch.Tensor) -> torch.Tensor:
            return torch.where(where[..., None], other.mlps[:, layer], out)

        return hook

    held = []
    for layer, head in chosen:
        block = anatomy.blocks(subject.model)[layer]
        if head < 0:
            held.append(block.mlp.register_forward_hook(put_mlp(layer)))
        else:
            out = getattr(block.get_submodule(anatomy.attention), anatomy.out)
            held.append(out.register_forward_pre_hook(put_head(layer, head)))
    expected = task_metric(subject.logits(batch.clean, batch.positions), batch)
    for hook in held:
        hook.remove()
    metric = carrying(bed, names, "subject")
    torch.testing.assert_close(metric(chosen), expected, atol=1e-10, rtol=0)
    assert torch.equal(metric([]), bed.metric) and not torch.allclose(expected, bed.metric)


CASES = [
    (["a0.h1"], ["logits"]),
    (["a0.h0"], ["a2.h1<q>"]),
    (["a0.h3", "a1.h2"], ["a1.h0<q>", "a2.h3<q>", "a2.h1<k>", "logits"]),
    (["a1.h1"], ["a2.h0<v>", "m2"]),
]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("through_mlps", [False, True])
@pytest.mark.parametrize("senders,receivers", [*CASES, (["input", "m0"], ["a1.h0<v>", "a2.h0<q>", "m1"])])
def test_path_patching_is_that_of_hooks(
    name: str, senders: list[str], receivers: list[str], through_mlps: bool
) -> None:
    subject, batch = Subject(tiny_model(name)), tiny_batch()
    if through_mlps and "m0" in senders:
        return
    bed, graph = PatchBed.build(subject, [batch]), subject.graph
    logits = patched_logits(subject, batch.clean, batch.corrupted, senders, receivers, through_mlps)
    expected = torch.take_along_dim(logits, batch.positions[..., None], 1)
    writers, readers = [graph.writers.index(s) for s in senders], [graph.readers.index(r) for r in receivers]
    (got,) = path_patch_logits(bed, writers, readers, through_mlps)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
    assert (got - subject.logits(batch.clean, batch.positions)).abs().max() > 1e-3
    torch.testing.assert_close(path_patch(bed, writers, readers, through_mlps), task_metric(got, batch))


@pytest.mark.parametrize("name", PLAIN)
def test_patching_everything_gives_the_corrupted_run(name: str) -> None:
    subject = Subject(tiny_model(name))
    batch, graph = tiny_batch(), subject.graph
    bed = PatchBed.build(subject, [batch])
    corrupted = subject.logits(batch.corrupted, batch.positions)
    for receivers in ([graph.n_readers - 1], list(range(graph.n_readers))):
        (logits,) = path_patch_logits(bed, list(range(graph.n_writers)), receivers)
        torch.testing.assert_close(logits, corrupted, atol=1e-10, rtol=0)
    torch.testing.assert_close(bed.scale, bed.metric - task_metric(corrupted, batch))
    nothing = path_patch(bed, [], [graph.n_readers - 1])
    torch.testing.assert_close(nothing, bed.metric)


def test_effects_are_normalised_and_leave_out_what_receivers_do_not_see() -> None:
    subject = Subject(tiny_model("llama"))
    graph, bed = subject.graph, PatchBed.build(subject, [tiny_batch()])
    readers = [head_reader(graph, 1, head, "v") for head in (2, 3)]
    assert readers[0] == readers[1] == graph.readers.index("a1.h1<v>")
    effects = path_effects(bed, head_writers(graph), readers[:1])
    assert [graph.writers[writer] for writer in effects.writers] == [f"a0.h{head}" for head in range(4)]
    grid = effects.grid(graph)
    assert bool(grid[1:].isnan().all()) and bool(grid[0].isfinite().all())
    expected = (path_patch(bed, [graph.writers.index("a0.h2")], readers[:1]) - bed.metric).mean() / bed.scale.mean()
    assert float(grid[0, 2]) == pytest.approx(float(expected), rel=1e-5)
    estimate = effects.estimate(graph.writers.index("a0.h2"))
    assert estimate.value == pytest.approx(float(expected), rel=1e-5)


def test_a_constant_ratio_has_no_interval() -> None:
    values = torch.tensor([1.0, 2.0, 5.0])
    estimate = ratio_estimate(-0.5 * values, values, None)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((-0.5, -0.5, -0.5))
