"""A circuit's export as a smaller model: it reloads equal to the node-ablated model, in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli import call, settings
from conftest import tiny_batch, tiny_model
from families import tiny_family
from transformers import AutoModelForCausalLM, AutoTokenizer

from circuitlit.compare.effects import without_nodes
from circuitlit.errors import UserError
from circuitlit.graph import MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject
from circuitlit.model.prune import cut_nodes, load_pruned, pruned, save_pruned

CUTS = {
    "one head and an MLP": ["a0.h1", "m1"],
    "all heads of a layer, groups of unequal size": [f"a1.h{head}" for head in range(4)]
    + ["a0.h0", "a2.h3", "a2.h2", "m0"],
    "nothing": [],
    "everything": [f"a{layer}.h{head}" for layer in range(3) for head in range(4)] + ["m0", "m1", "m2"],
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_it_reloads_equal_to_the_node_ablated_model(name: str, cut: list[str], local: Path, tmp_path: Path) -> None:
    model = tiny_model(name).eval()
    subject, batch = Subject(model), tiny_batch()
    layout = MaskLayout(subject.graph)
    masks = without_nodes(subject.graph, cut).double()[0]
    ablated = References(subject, "zero").compute(batch).ablated
    expected = MaskedModel(subject)(layout.dense(masks), batch.clean, ablated, batch.positions)
    tokenizer = AutoTokenizer.from_pretrained(local / "model")
    size = save_pruned(model, pruned(model, cut), cut, tokenizer, tmp_path / "small")
    with pytest.raises(OSError):  # drawn at random, what is cut would be there again
        AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    again = load_pruned(tmp_path / "small")
    logits = again(batch.clean).logits.gather(1, batch.positions[..., None].expand(-1, -1, 50))
    assert torch.allclose(logits, expected, rtol=0, atol=1e-10)
    assert again.dtype == torch.float64 and size <= 8 * sum(p.numel() for p in model.parameters()) + 10_000
    fewer = sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in model.parameters())
    assert fewer == bool(cut)


def test_a_layer_without_heads_whose_attention_lies_deeper(local: Path, tmp_path: Path) -> None:
    """GPT-Neo's attention is a module inside a module; no bias of its output stays here."""
    model, cut = tiny_family("gpt_neo").float().eval(), [f"a0.h{head}" for head in range(4)]
    out = model.get_submodule("transformer.h.0.attn.attention.out_proj")
    save_pruned(model, pruned(model, cut), cut, AutoTokenizer.from_pretrained(local / "model"), tmp_path)
    ids = tiny_batch().clean
    again = load_pruned(tmp_path)(ids).logits
    next(out.parameters()).detach().zero_()
    assert torch.allclose(again, model(ids).logits, atol=1e-5)


def test_bfloat16_reloads_with_the_positions_that_it_had(local: Path, tmp_path: Path) -> None:
    model, cut = AutoModelForCausalLM.from_config(tiny_model("llama").config, dtype=torch.bfloat16).eval(), ["a0.h1"]
    small = pruned(model, cut)
    save_pruned(model, small, cut, AutoTokenizer.from_pretrained(local / "model"), tmp_path)
    again = load_pruned(tmp_path)
    for name, own in small.named_buffers():
        assert torch.equal(again.get_buffer(name), own) and again.get_buffer(name).dtype == own.dtype, name


def test_what_is_cut_is_what_no_edge_leaves() -> None:
    graph = Subject(tiny_model("gpt2")).graph
    kept = torch.zeros(1, graph.n_edges, dtype=torch.bool)
    names = [graph.edge_name(edge) for edge in range(graph.n_edges)]
    for edge in ("input->a0.h2<v>", "a0.h2->m1", "m1->logits"):
        kept[0, names.index(edge)] = True
    assert set(graph.writers[1:]) - set(cut_nodes(graph, kept)) == {"a0.h2", "m1"}


def test_other_folders_and_architectures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pruned model"):
        load_pruned(tmp_path)
    with pytest.raises(UserError, match="cannot be cut out"):
        pruned(tiny_model("gpt_neox"), ["a0.h1"])


def test_the_verb_exports_a_model_and_measures_it(local: Path, tmp_path: Path) -> None:
    call(*settings(local, tmp_path / "run", "method=eap", "logger=none", "sparsity.target=0.85"), verb="attribute")
    more = [f"circuit={tmp_path}/run", "format=pruned", "passages.count=4", "passages.length=8", "logger=none"]
    call(*settings(local, tmp_path / "out", *more), verb="export")
    result = json.loads((tmp_path / "out" / "pruned.json").read_text())
    assert result["cut"] and result["parameters"]["pruned"] < result["parameters"]["whole"]
    assert result["beside_ablated"]["max_logit_difference"] < 1e-4
    assert load_pruned(tmp_path / "out" / "pruned").num_parameters() == result["parameters"]["pruned"]
