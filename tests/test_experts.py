"""Mixtures of experts: the router is a reader of its own, the experts write as one MLP."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli import call, settings, write_local
from conftest import tiny_batch
from families import KeepsFloat64, tiny_family
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from circuitlit import check_model
from circuitlit.evaluate.experts import expert_shares
from circuitlit.graph import Circuit, EdgeScores, Graph, MaskLayout
from circuitlit.masked import MaskedModel, ablated_run
from circuitlit.model import Subject, record
from circuitlit.model.families import graph_of

NAMES = ["mixtral", "phimoe", "granitemoe", "granitemoe_swa", "olmoe", "gpt_oss"]
NAMES += ["qwen2_moe:all experts", "qwen3_moe:all experts"]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with KeepsFloat64():
        yield


def logits(subject: Subject, dense: Tensor) -> Tensor:
    batch = tiny_batch()
    ablated = ablated_run(subject, batch, "interchange")
    return MaskedModel(subject, 1)(dense[None], batch.clean, ablated, batch.positions)


def first(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return outputs[0] if isinstance(outputs, tuple) else outputs


def test_edges_are_those_of_the_whole_models() -> None:
    mixtral = AutoConfig.for_model("mixtral")
    assert graph_of(mixtral).n_edges == 823_105
    assert replace(graph_of(mixtral), routers=False).n_edges == 805_681
    assert Graph(48, 32, 4, routers=True).n_edges == 1_570_081  # Qwen3-30B-A3B
    assert Graph(16, 16, 16, routers=True).n_edges == 103_585  # OLMoE-1B-7B
    assert Graph(24, 64, 8, routers=True).n_edges == 1_477_681  # gpt-oss-20b
    assert not graph_of(AutoConfig.for_model("qwen3_moe", mlp_only_layers=[1])).routers


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_equal_rows_are_one_reader(name: str) -> None:
    """With the MLP's masks on its router, too, the router is no reader of its own; with others it is."""
    subject, apart = (Subject(tiny_family(name)) for _ in range(2))
    graph = apart.graph
    assert graph.routers
    subject.graph = together = replace(graph, routers=False)
    flat = torch.rand(together.n_edges, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = MaskLayout(together).dense(flat)[0]
    rows = [row for row, reader in enumerate(graph.readers) if not reader.endswith("<router>")]
    both = torch.zeros(graph.n_readers, graph.n_writers, dtype=torch.float64)
    both[rows] = one
    routers = [graph.mlp_row(layer) + 1 for layer in range(graph.n_layers)]
    assert [graph.readers[row] for row in routers] == [f"m{layer}<router>" for layer in range(graph.n_layers)]
    both[routers] = both[[row - 1 for row in routers]]
    expected = logits(subject, one)
    torch.testing.assert_close(logits(apart, both), expected, rtol=1e-12, atol=1e-12)
    for row in routers:
        both[row] = 1 - both[row]
    assert float((logits(apart, both) - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_shares_of_experts_are_those_of_what_they_write(name: str) -> None:
    """Beside the model with all other experts' matrices at zero, whose MLP writes what is left."""
    subject, batch = Subject(tiny_family(name)), tiny_batch()
    graph = subject.graph
    values = torch.arange(graph.n_edges).float()[None]
    kept = graph.reader_of == graph.mlp_row(1) + 1
    kept |= (graph.writer_of == graph.writers_before(0) + graph.n_heads) & (graph.reader_of == graph.n_readers - 1)
    circuit = Circuit.of(EdgeScores(graph, values, "own"), kept[None])
    found = expert_shares(subject, [batch], circuit)
    assert found is not None
    assert [(row["node"], row["edges"], row["router_edges"]) for row in found] == [
        ("m0", 2, 0),
        ("m1", 0, int(kept.sum()) - 1),
    ]
    for layer, row in enumerate(found):
        mlp = subject.anatomy.blocks(subject.model)[layer].get_submodule(subject.anatomy.mlp)
        with record(subject) as whole:
            subject.hidden(batch.clean)
        caught: list[Tensor] = []
        with ExitStack() as stack:
            stack.callback(mlp.register_forward_pre_hook(lambda _m, args, c=caught: c.append(args[0])).remove)
            subject.hidden(batch.clean)
        (x,) = caught
        names = [key for key, own in mlp.experts.named_parameters() if own.shape[0] == 4]
        norms = {}
        for expert in range(4):
            alone = copy.deepcopy(mlp)
            for key in names:
                own = alone.experts.get_parameter(key)
                own[[other for other in range(4) if other != expert]] = 0
            for part in ("shared_expert", "shared_expert_gate"):
                if hasattr(alone, part):
                    for own in getattr(alone, part).parameters():
                        own.zero_()
            norms[f"e{expert}"] = float(first(alone(x)).norm(dim=-1).sum())
        assert torch.allclose(first(mlp(x)) * subject.anatomy.write_factor, whole.mlps[layer])
        routed = sum(norms.values())
        beside = row["shares"].get("shared", 0.0)
        assert (beside > 0) == hasattr(mlp, "shared_expert")
        assert sum(row["shares"].values()) == pytest.approx(1)
        for key, norm in norms.items():
            assert row["shares"].get(key, 0.0) == pytest.approx(norm / routed * (1 - beside), rel=1e-6)


def test_a_check_gives_the_router_a_stream_of_its_own(tmp_path: Path) -> None:
    found = check_model(tiny_family("mixtral").float(), cache_dir=str(tmp_path))
    assert found.status == "PASSED", found.reasons


def test_the_page_of_a_circuit_with_routers_says_what_they_read(tmp_path: Path) -> None:
    folder = write_local(tmp_path / "local")
    numbers = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    numbers |= {"num_key_value_heads": 1, "num_local_experts": 3, "vocab_size": 41}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **numbers)).save_pretrained(folder / "model")
    call(*settings(folder, tmp_path / "run", "logger=none", "sparsity.target=0.2"), verb="attribute")
    page = (tmp_path / "run" / "report.html").read_text()
    assert '<input type="checkbox" data-kind="router" checked>' in page
