"""Heads: patterns against the stock eager attention, planted heads, path patching against hooks, the verb."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_batch, tiny_model
from path_patching import patched_logits

from circuitlit.heads import Heads, PatchBed, path_patch
from circuitlit.heads.path_patching import path_patch_logits
from circuitlit.model import Subject
from circuitlit.objective import task_metric

ARCHITECTURES = ["gpt2", "gpt_neox", "gpt_neox_sequential", "llama", "qwen3"]


def test_patterns_are_those_of_the_stock_eager_attention(subject: Subject) -> None:
    ids = tiny_batch().clean
    subject.model.set_attn_implementation("eager")
    expected = subject.model(ids, output_attentions=True).attentions
    for layer, pattern in enumerate(Heads(subject).patterns(ids)):
        torch.testing.assert_close(pattern, expected[layer].double(), atol=1e-6, rtol=0)  # eager softmax is float32
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))


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
